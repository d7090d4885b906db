"""HTTP/1.1 from a socket: whatever arrives, or does not, has a defined answer, and the next client is served."""

import json
import re
import socket
from threading import Thread
from time import sleep

import pytest
import uvicorn
from painter import Painter, house

from server import errors
from server.api import protocol
from server.app import create_app
from server.config.catalog import single_model_catalog
from server.engine.model import detect_model

LIVE = b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /ai/generate-image HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
HALF = POST + b"Content-Length: 100\r\n\r\n{"
BODY = b'{"input": "a", "parameters": {"width": 64, "height": 64}}'


@pytest.fixture(scope="module")
def painter():
    return Painter()


@pytest.fixture(scope="module")
def address(demo_file, painter):
    """Where a server listens that has little patience and takes 1 MiB."""
    here = house(detect_model(single_model_catalog(demo_file)), painter, body_limit=1, body_timeout=0.5)
    config = uvicorn.Config(create_app(here), http=protocol.Protocol, ws="none", log_config=None)
    server = uvicorn.Server(config)
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as listening:
        patch.setattr(protocol, "PATIENCE", 0.5)
        patch.setattr(errors, "LINGER", 0.1)
        thread = Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            sleep(0.01)
        here.engine.wait_ready()
        yield listening.getsockname()
        server.should_exit = True
        thread.join()


@pytest.fixture
def still_serves(address):
    """After the test, the server draws."""
    yield
    answer = said(address, POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)
    assert answer.startswith(b"HTTP/1.1 200")


def said(address, *pieces, pause=0.0):
    """All that the server says to these bytes until it hangs up; it must hang up."""
    with socket.create_connection(address, timeout=20) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                sleep(pause)
        except ConnectionError:  # it hung up in the middle
            pass
        return rest(connection)


def rest(connection):
    found = bytearray()
    try:
        while piece := connection.recv(65536):
            found += piece
    except ConnectionError:
        pass
    return bytes(found)


def statuses(answer):
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+) [A-Z]", answer)]


def refused(answer, status, fragment):
    """The one answer there is, in NAI's envelope."""
    assert statuses(answer) == [status]
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    assert re.search(rb"\r\nx-request-id: [0-9a-f]{16}(\r\n|$)", head.lower())
    told = json.loads(body)
    assert told["statusCode"] == status
    assert fragment in told["message"]


def headers(*lines):
    return b"\r\n".join((b"GET /live HTTP/1.1", *lines, b"", b""))


@pytest.mark.usefixtures("still_serves")
@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"hello\r\n\r\n", id="no HTTP"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", id="TLS"),
        pytest.param(b"GET /live HTTP/1.1\r\n\r\n", id="no Host"),
        pytest.param(headers(b"Host: localhost", b"Host: evil.example"), id="two Hosts"),
        pytest.param(headers(b"Host: localhost", b"no colon"), id="a header without a colon"),
        pytest.param(headers(b"Host: localhost", b"a: b\x00c"), id="NUL in a header"),
        pytest.param(headers(b"Host: localhost", b"Content-Length: -1"), id="a negative length"),
        pytest.param(
            headers(b"Host: localhost", b"Content-Length: 1", b"Content-Length: 2"), id="two lengths"
        ),
        pytest.param(CHUNKED + b"zz\r\n", id="a chunk of no size"),
        pytest.param(CHUNKED + b"1\r\n{}\r\n", id="a chunk longer than it says"),
    ],
)
def test_what_is_not_http_is_refused_in_the_envelope(address, sent):
    refused(said(address, sent), 400, "not HTTP/1.1")


LARGE = b"Cookie: " + b"c" * 65_536
URL_ = b"GET /live?" + b"q" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
MANY = headers(b"Host: localhost", *[b"a: b"] * 10_000)


@pytest.mark.usefixtures("still_serves")
@pytest.mark.parametrize("pieces", [1, 8], ids=["at once", "in pieces"])
@pytest.mark.parametrize(
    "sent", [headers(b"Host: localhost", LARGE), MANY, URL_], ids=["one of 64 kB", "10,000", "the address"]
)
def test_headers_too_large_are_refused_however_they_arrive(address, sent, pieces):
    length = -(-len(sent) // pieces)
    answer = said(address, *(sent[i : i + length] for i in range(0, len(sent), length)), pause=0.01)
    assert statuses(answer) == [431]
    assert b"the headers are too large" in answer


@pytest.mark.usefixtures("still_serves")
@pytest.mark.parametrize("sent", [b"GET /li", LIVE[:-2]], ids=["half a line", "half the headers"])
def test_headers_that_do_not_come_are_not_waited_for(address, sent):
    refused(said(address, sent), 408, "headers")


def test_a_connection_that_says_nothing_is_closed_without_a_word(address):
    assert said(address) == b""


def test_headers_that_drip_are_not_waited_for(address):
    refused(said(address, LIVE[:-2], *[b"a: b\r\n"] * 12, pause=0.1), 408, "headers")


def test_a_second_request_has_no_more_time_than_the_first(address):
    answer = said(address, LIVE, LIVE[:-2], *[b"a: b\r\n"] * 12, pause=0.1)
    assert statuses(answer) == [200, 408]


def test_a_connection_in_use_is_kept_for_longer_than_patience(address):
    assert statuses(said(address, *[LIVE] * 10, pause=0.09)) == [200] * 10


def test_the_rest_of_a_body_that_nobody_wants_is_not_waited_for(address):
    answer = said(address, HALF.replace(b"/ai/generate-image", b"/nowhere"), *[b" "] * 12, pause=0.1)
    assert statuses(answer) == [404]


def test_requests_sent_ahead_are_all_answered(address):
    assert statuses(said(address, LIVE * 3, LIVE[:5])) == [200, 200, 200, 408]


@pytest.mark.usefixtures("still_serves")
@pytest.mark.parametrize("drops", [0, 12], ids=["stops", "drips"])
@pytest.mark.parametrize("head", [HALF, CHUNKED + b"1\r\n{\r\n"], ids=["of a length", "in chunks"])
def test_a_body_slower_than_patience_is_not_waited_for(address, painter, head, drops):
    before = len(painter.jobs)
    drop = b" " if head is HALF else b"1\r\n \r\n"
    refused(said(address, head, *[drop] * drops, pause=0.1), 408, "within 0.5 seconds")
    assert len(painter.jobs) == before


@pytest.mark.usefixtures("still_serves")
@pytest.mark.parametrize(
    "sent",
    [
        pytest.param((POST + b"Content-Length: 1048577\r\n\r\n",), id="by its length, before any of it came"),
        pytest.param((POST + b"Expect: 100-continue\r\nContent-Length: 9999999\r\n\r\n",), id="asking first"),
        pytest.param((CHUNKED, *[b"10000\r\n" + b" " * 65_536 + b"\r\n"] * 17), id="in chunks without end"),
        pytest.param((CHUNKED, b"fffffff\r\n", *[b" " * 65_536] * 64), id="in one chunk"),
    ],
)
def test_a_body_over_the_limit_is_refused_and_hung_up_on(address, painter, sent):
    before = len(painter.jobs)
    refused(said(address, *sent), 413, "larger than 1 MiB")
    assert len(painter.jobs) == before


def test_many_chunks_of_a_byte_are_a_body_like_any_other(address):
    spaced = b" " * 50_000 + BODY
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in spaced) + b"0\r\n\r\n"
    assert statuses(
        said(address, CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + chunks)
    ) == [200]


@pytest.mark.usefixtures("still_serves")
def test_a_length_that_says_too_little_cuts_the_body_there(address):
    answer = said(address, POST + b"Content-Length: 10\r\n\r\n" + BODY + b"\r\n\r\n")
    assert statuses(answer) == [400, 400]
    assert b"is not JSON" in answer
    assert b"not HTTP/1.1" in answer


@pytest.mark.usefixtures("still_serves")
def test_a_body_that_ends_before_its_length_draws_nothing(address, painter):
    before = len(painter.jobs)
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(POST + b"Content-Length: 1000\r\n\r\n" + BODY)
        connection.shutdown(socket.SHUT_WR)
        assert rest(connection) == b""
    assert len(painter.jobs) == before
