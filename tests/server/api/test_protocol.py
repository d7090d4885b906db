"""HTTP/1.1 over a socket: anything that arrives, or fails to, has a defined response, and the next client is served."""

import json
import logging
import re
import socket
from contextlib import suppress
from threading import Semaphore

import pytest
from fake_model import FakeModel, build_state
from live_server import Clock, connect, exchange, outwait, read_rest, read_until, serve, serve_app
from waiting import wait_until

from server.api import exchange as exchanges
from server.api import protocol
from server.api.memory import Memory

LIVE = b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = b"GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
ALIVE = b'{"status":"alive"}'
POST = b"POST /ai/generate-image HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
HALF = POST + b"Content-Length: 100\r\n\r\n{"
BODY = b'{"input": "a", "parameters": {"width": 64, "height": 64}}'


@pytest.fixture(scope="module")
def fake_model():
    return FakeModel()


@pytest.fixture(scope="module")
def clock():
    """The time of the server."""
    return Clock()


@pytest.fixture(scope="module")
def address(model, fake_model, clock):
    """The address of a server that reads 1 MiB of a body, 4,096 lines of it, and little of a refused one."""
    state = build_state(model, fake_model, body_limit=1)
    with pytest.MonkeyPatch.context() as patch, serve(state, clock=clock) as address:
        patch.setattr(protocol, "LINGER", 0.1)
        patch.setattr(protocol, "LINE_LIMIT", 2**12)
        patch.setattr(exchanges, "DRAIN_TIMEOUT", 0.1)
        yield address


@pytest.fixture
def outlast(address, clock):
    """Send pieces, with some seconds after each, and return all that the server sends until it closes the connection."""

    def outlast(*pieces, seconds=0.0):
        with connect(address) as connection:
            with suppress(ConnectionError):  # the server has closed the connection
                for piece in pieces:
                    connection.sendall(piece)
                    clock.advance(seconds)
            return outwait(connection, clock)

    return outlast


@pytest.fixture
def still_serves(address):
    """Check after the test that the server still generates."""
    yield
    response = exchange(address, POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)
    assert response.startswith(b"HTTP/1.1 200")


def read_statuses(response):
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+) [A-Z]", response)]


def check_error(response, status, fragment):
    """Check that there is one response, an error in NAI's envelope."""
    assert read_statuses(response) == [status]
    head, _, body = response.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    assert re.search(rb"\r\nx-request-id: [0-9a-f]{16}(\r\n|$)", head.lower())
    envelope = json.loads(body)
    assert envelope["statusCode"] == status
    assert fragment in envelope["message"]


def build_head(*lines):
    return b"\r\n".join((b"GET /live HTTP/1.1", *lines, b"", b""))


@pytest.mark.usefixtures("still_serves")
@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"hello\r\n\r\n", id="not HTTP"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", id="TLS"),
        pytest.param(b"GET /live HTTP/1.1\r\n\r\n", id="no Host"),
        pytest.param(build_head(b"Host: localhost", b"Host: evil.example"), id="two Hosts"),
        pytest.param(build_head(b"Host: localhost", b"no colon"), id="a header without a colon"),
        pytest.param(build_head(b"Host: localhost", b"a: b\x00c"), id="NUL in a header"),
        pytest.param(build_head(b"Host: localhost", b"Content-Length: -1"), id="a negative length"),
        pytest.param(
            build_head(b"Host: localhost", b"Content-Length: 1", b"Content-Length: 2"), id="two lengths"
        ),
        pytest.param(CHUNKED + b"zz\r\n", id="a chunk of no size"),
        pytest.param(CHUNKED + b"1\r\n{}\r\n", id="a chunk longer than it says"),
    ],
)
def test_other_protocols_and_malformed_requests_are_refused_in_the_envelope(address, sent):
    check_error(exchange(address, sent), 400, "not HTTP/1.1")


@pytest.mark.usefixtures("still_serves")
@pytest.mark.parametrize("method", [b"POST", b"HEAD"])
@pytest.mark.parametrize("host", [b"localhost", b"evil.example"], ids=["body awaited", "answered at once"])
def test_a_malformed_body_gets_one_response_also_if_the_application_answers(address, caplog, method, host):
    sent = CHUNKED.replace(b"POST", method).replace(b"localhost", host) + b"zz\r\n"
    check_error(exchange(address, sent), 400, "not HTTP/1.1")
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


LARGE = b"Cookie: " + b"c" * 65_536
LONG_URL = b"GET /live?" + b"q" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
MANY = build_head(b"Host: localhost", *[b"a: b"] * 10_000)


@pytest.mark.usefixtures("still_serves")
@pytest.mark.parametrize("pieces", [1, 8], ids=["at once", "in pieces"])
@pytest.mark.parametrize(
    "sent",
    [build_head(b"Host: localhost", LARGE), MANY, LONG_URL],
    ids=["one of 64 kB", "10,000", "a long URL"],
)
def test_headers_too_large_are_refused_however_they_arrive(address, clock, sent, pieces):
    length = -(-len(sent) // pieces)
    cut = [sent[start : start + length] for start in range(0, len(sent), length)]
    response = exchange(address, *cut, between=lambda: clock.advance(0))
    assert read_statuses(response) == [431]
    assert b"the headers are too large" in response


@pytest.mark.usefixtures("still_serves")
@pytest.mark.parametrize("sent", [b"GET /li", LIVE[:-2]], ids=["half a line", "half the headers"])
def test_incomplete_headers_time_out(outlast, sent):
    check_error(outlast(sent), 408, "headers")


def test_an_idle_connection_is_closed_without_a_response(outlast):
    assert outlast() == b""


@pytest.mark.parametrize("times", [0, 4])
def test_a_connection_is_kept_for_80_seconds_after_each_request(address, clock, times):
    assert protocol.HEADERS_TIMEOUT < 75  # for which connection pools rest
    with connect(address) as connection:
        clock.advance(80)
        for _ in range(times):
            connection.sendall(LIVE)
            assert read_statuses(read_until(connection, ALIVE)) == [200]
            clock.advance(80)
        connection.sendall(LAST)
        assert read_statuses(read_rest(connection)) == [200]


def test_headers_that_arrive_slowly_time_out(outlast):
    check_error(outlast(LIVE[:-2], *[b"a: b\r\n"] * 12, seconds=3), 408, "headers")


def test_a_second_request_has_the_same_deadline_as_the_first(outlast):
    response = outlast(LIVE, LIVE[:-2], *[b"a: b\r\n"] * 12, seconds=3)
    assert read_statuses(response) == [200, 408]


def test_a_request_may_run_for_longer_than_the_deadline(address, clock, fake_model, monkeypatch):
    gate = Semaphore(0)
    monkeypatch.setattr(fake_model, "gate", gate)
    before = len(fake_model.evaluations)
    with connect(address) as connection:
        connection.sendall(POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)
        wait_until(lambda: len(fake_model.evaluations) > before)
        clock.advance(100)
        gate.release(100)
        assert read_statuses(read_rest(connection)) == [200]


def test_the_rest_of_an_unread_body_times_out_without_a_second_response(outlast):
    response = outlast(HALF.replace(b"/ai/generate-image", b"/nowhere"), *[b" "] * 12, seconds=3)
    assert read_statuses(response) == [404]


def test_pipelined_requests_are_all_answered(outlast):
    assert read_statuses(outlast(LIVE * 3, LIVE[:5])) == [200, 200, 200, 408]


@pytest.mark.usefixtures("still_serves")
@pytest.mark.parametrize("count", [0, 12], ids=["stops", "drips"])
@pytest.mark.parametrize("head", [HALF, CHUNKED + b"1\r\n{\r\n"], ids=["of a length", "in chunks"])
def test_a_slow_body_times_out(outlast, fake_model, head, count):
    before = len(fake_model.jobs)
    piece = b" " if head is HALF else b"1\r\n \r\n"
    check_error(outlast(head, *[piece] * count, seconds=6), 408, "within 60 seconds")
    assert len(fake_model.jobs) == before


@pytest.mark.usefixtures("still_serves")
@pytest.mark.parametrize(
    "sent",
    [
        pytest.param((POST + b"Content-Length: 1048577\r\n\r\n",), id="by its declared length"),
        pytest.param(
            (POST + b"Expect: 100-continue\r\nContent-Length: 9999999\r\n\r\n",), id="expecting 100-continue"
        ),
        pytest.param((CHUNKED, *[b"10000\r\n" + b" " * 65_536 + b"\r\n"] * 17), id="in chunks without end"),
        pytest.param((CHUNKED, b"fffffff\r\n", *[b" " * 65_536] * 64), id="in one chunk"),
    ],
)
def test_a_body_over_the_limit_is_refused_and_the_connection_closed(address, fake_model, sent):
    before = len(fake_model.jobs)
    check_error(exchange(address, *sent), 413, "larger than 1 MiB")
    assert len(fake_model.jobs) == before


@pytest.mark.usefixtures("still_serves")
def test_a_malformed_chunk_after_the_response_began_gets_no_second_response(address):
    with connect(address) as connection:
        connection.sendall(CHUNKED + b"110000\r\n" + b" " * 0x110000 + b"\r\n")
        received = read_until(connection, b"413")
        with suppress(ConnectionError):
            connection.sendall(b"zz\r\n")
        assert read_statuses(received + read_rest(connection)) == [413]


def test_a_body_in_chunks_of_one_byte_is_read(address):
    spaced = b" " * 1500 + BODY
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in spaced) + b"0\r\n\r\n"
    assert read_statuses(
        exchange(address, CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + chunks)
    ) == [200]


def test_line_ends_in_a_body_of_known_length_are_not_chunks(address):
    body = b"\r\n    " * 5000 + BODY
    head = POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert read_statuses(exchange(address, head + body)) == [200]


@pytest.mark.parametrize(
    ("target", "status"),
    [(b"http://localhost/live", 200), (b"HTTP://api.novelai.net:80//live/", 200), (b"http://localhost", 200), (b"ftp://localhost/live", 404)],
)  # fmt: skip
def test_a_target_may_name_scheme_and_host_as_proxies_are_sent_it(address, target, status):
    request = b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % target
    assert read_statuses(exchange(address, request)) == [status]


@pytest.mark.usefixtures("still_serves")
def test_a_content_length_below_the_body_s_length_cuts_the_body(address):
    response = exchange(address, POST + b"Content-Length: 10\r\n\r\n" + BODY + b"\r\n\r\n")
    assert read_statuses(response) == [400, 400]
    assert b"is not JSON" in response
    assert b"not HTTP/1.1" in response


@pytest.mark.usefixtures("still_serves")
def test_a_body_that_ends_early_generates_nothing(address, fake_model):
    before = len(fake_model.jobs)
    with connect(address) as connection:
        connection.sendall(POST + b"Content-Length: 1000\r\n\r\n" + BODY)
        connection.shutdown(socket.SHUT_WR)
        assert read_rest(connection) == b""
    assert len(fake_model.jobs) == before


@pytest.mark.usefixtures("still_serves")
def test_a_body_in_too_many_chunks_is_refused_also_while_it_is_sent(address, fake_model):
    before = len(fake_model.jobs)
    check_error(exchange(address, CHUNKED + b"1\r\n \r\n" * 8000), 413, "too many chunks")
    assert len(fake_model.jobs) == before


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (LIVE, [200]),
        (LIVE.replace(b"1.1", b"1.0"), [200]),
        (LIVE * 3, [200] * 3),
        (POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY, [200]),
        (POST.replace(b"1.1", b"1.0") + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY, [200]),
        (POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY + LIVE, [200, 200]),
        (CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY), [200]),
    ],
)
def test_a_client_that_has_shut_down_its_sending_side_is_answered(address, clock, caplog, sent, statuses):
    with connect(address) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        received = read_rest(connection)
    assert read_statuses(received) == statuses
    assert received.count(b"HTTP/1.1 ") == len(statuses)
    assert b"100 Continue" not in received
    clock.advance(protocol.PROBE_INTERVAL)  # nothing looks at the closed socket
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
WEBSOCKET = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: YQ==\r\n"
)


@pytest.mark.parametrize("offer", [H2C, WEBSOCKET], ids=["h2c", "websocket"])
def test_a_request_that_offers_an_upgrade_is_answered_without_a_warning(address, clock, caplog, offer):
    post = POST + offer + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    with connect(address) as connection:
        connection.sendall(post + LIVE.replace(b"\r\n\r\n", b"\r\n" + offer + b"\r\n") + LIVE[:5])
        response = read_until(connection, ALIVE) + outwait(connection, clock)
    assert read_statuses(response) == [200, 200, 408]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_warnings_about_what_is_not_http_are_still_logged(address, caplog):
    exchange(address, H2C + b"\r\n")
    assert "Invalid HTTP request received." in caplog.text


def test_a_client_that_offers_an_upgrade_and_hangs_up_frees_the_device(
    address, fake_model, monkeypatch, caplog
):
    caplog.set_level(logging.INFO, "naiad.requests")
    gate = Semaphore(0)
    monkeypatch.setattr(fake_model, "gate", gate)
    before, finished = len(fake_model.evaluations), len(fake_model.finished)
    with connect(address) as connection:
        connection.sendall(POST + H2C + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
        wait_until(lambda: len(fake_model.evaluations) > before)
    wait_until(lambda: "generate-image 499" in caplog.text)
    gate.release(100)
    assert len(fake_model.finished) == finished


def test_a_half_closed_client_that_goes_away_frees_the_device(
    address, clock, fake_model, monkeypatch, caplog
):
    caplog.set_level(logging.INFO, "naiad.requests")
    gate = Semaphore(0)
    monkeypatch.setattr(fake_model, "gate", gate)
    before, finished = len(fake_model.evaluations), len(fake_model.finished)
    with connect(address) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
        connection.shutdown(socket.SHUT_WR)
        wait_until(lambda: len(fake_model.evaluations) > before)
        for _ in range(3):
            clock.advance(protocol.PROBE_INTERVAL)
        assert "generate-image 499" not in caplog.text
    wait_until(lambda: "generate-image 499" in caplog.text)
    gate.release(100)
    assert len(fake_model.finished) == finished


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({b"localhost": b"evil.example"}, 403),
        ({b"/ai/generate-image": b"/nowhere"}, 404),
        ({b"POST": b"PUT"}, 405),
        ({b"application/json": b"text/plain"}, 415),
        ({b"Content-Type": b"Content-Encoding: gzip\r\nContent-Type"}, 415),
        ({}, 413),
    ],
)
def test_a_refusal_reaches_a_client_that_sends_everything_first(address, monkeypatch, changes, status):
    monkeypatch.setattr(exchanges, "DRAIN_TIMEOUT", 60)
    size = 8_000_000
    head = POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % size
    for old, new in changes.items():
        head = head.replace(old, new)
    with connect(address) as connection:
        connection.sendall(head + bytes(size))
        check_error(read_rest(connection), status, "")


def test_two_kinds_of_length_are_refused(address):
    head = POST + b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n" % len(BODY)
    sent = head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    check_error(
        exchange(address, sent), 400, "Content-Length: cannot be sent together with Transfer-Encoding"
    )


async def send_much(_scope, _receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(40_000_000)})


def test_a_client_that_takes_no_response_is_dropped_with_its_memory():
    clock, memory = Clock(), Memory(0)

    def is_dropped():
        clock.advance(protocol.WRITE_TIMEOUT)
        return memory.held == 0

    async def app(scope, receive, send):
        scope["reservation"].hold(7)
        await send_much(scope, receive, send)

    with serve_app(exchanges.complete_exchanges(app, memory), clock=clock) as address:
        with connect(address) as connection:
            connection.sendall(LIVE)
            wait_until(lambda: memory.held == 7)
            wait_until(is_dropped)
            assert len(read_rest(connection)) < 40_000_000
        with connect(address) as connection:
            connection.sendall(LAST)
            assert len(read_rest(connection)) > 40_000_000
