"""An id and a log line for every request, and a response even if all else fails."""

import asyncio
import logging
import re
from base64 import b64encode

import numpy as np
import pytest
from fake_model import GENERATE, FakeModel, build_state, start_client
from fastapi.testclient import TestClient
from structlog.contextvars import get_contextvars
from waiting import LIMIT

from server.api.error_responses import INTERNAL_ERROR
from server.api.middleware import trace_requests
from server.picture.png import encode_png

BODY = {"input": "a secret wish", "parameters": {"width": 64, "height": 64, "n_samples": 2}}
PNG = b64encode(encode_png(np.full((64, 64, 3), 99, np.uint8), {})).decode()
ID = re.compile(r"[0-9a-f]{16}")


@pytest.fixture(scope="module")
def fake_model():
    return FakeModel()


@pytest.fixture(scope="module")
def client(model, fake_model):
    state = build_state(model, fake_model)
    with start_client(state) as client:
        yield client


@pytest.fixture
def lines(caplog):
    """Return the log lines about requests."""
    caplog.set_level(logging.DEBUG, "naiad.requests")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "naiad.requests"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/live", {}, 200),
        ("POST", GENERATE, {}, 200),
        ("GET", "/nowhere", {}, 404),
        ("GET", GENERATE, {}, 405),
        ("POST", GENERATE, {"Content-Type": "text/plain"}, 415),
        ("GET", "/live", {"Host": "evil.example"}, 403),
        ("OPTIONS", GENERATE, {"Access-Control-Request-Method": "POST"}, 204),
        ("GET", "/live", {"Cookie": "c" * 20_000}, 431),
    ],
)
def test_every_response_has_an_id_and_every_request_one_line(client, lines, method, path, headers, status):
    response = client.request(method, path, json=BODY if method == "POST" else None, headers=headers)
    assert response.status_code == status
    request_id = response.headers["x-request-id"]
    assert ID.fullmatch(request_id)
    (line,) = lines()
    assert re.fullmatch(rf"{request_id} {method} {path} {status} \d+ ms", line)


def test_a_request_has_its_fields_as_attributes_of_its_record(client, caplog):
    caplog.set_level(logging.INFO, "naiad.requests")
    response = client.post(f"{GENERATE}?token=pst-secret", json=BODY)
    (record,) = [record for record in caplog.records if record.name == "naiad.requests"]
    fields = record.request_id, record.method, record.path, record.status
    assert fields == (response.headers["x-request-id"], "POST", GENERATE, 200)
    assert 0 < record.seconds < LIMIT
    assert not hasattr(record, "account")
    assert "pst-secret" not in str(vars(record))


def test_what_handling_a_request_logs_has_the_id_of_the_request(client, fake_model, monkeypatch):
    ids = []

    class Collector(logging.Handler):
        def emit(self, record):
            ids.append(get_contextvars().get("request_id"))

    monkeypatch.setattr(fake_model, "failure", RuntimeError("broken"))
    handler = Collector()
    logger = logging.getLogger("naiad")
    logger.addHandler(handler)
    try:
        response = client.post(GENERATE, json=BODY)
    finally:
        logger.removeHandler(handler)
    assert {*ids} == {response.headers["x-request-id"]}


HOSTILE = ["", "7", "a\tb", "x" * 10_000, "../../x", "%0d%0aSet-Cookie: a=b", b"\xe9", "${jndi:ldap://x}"]


@pytest.mark.parametrize("sent", HOSTILE, ids=lambda value: ascii(value)[:30])
@pytest.mark.parametrize("name", ["X-Request-Id", "X-Correlation-Id", "X-Initiated-At"])
def test_the_id_that_a_client_sends_is_neither_echoed_nor_logged(client, lines, name, sent):
    response = client.get("/live", headers={name: sent})
    assert response.status_code == 200
    assert ID.fullmatch(response.headers["x-request-id"])
    assert re.fullmatch(r"[0-9a-f]{16} GET /live 200 \d+ ms", lines()[0])


def test_ids_differ(client):
    assert len({client.get("/live").headers["x-request-id"] for _ in range(10)}) == 10


@pytest.mark.parametrize(
    ("path", "logged"),
    [
        ("/a%0d%0a2026-01-01%20forged", r"/a\r\n2026-01-01 forged"),
        ("/%1b[31m", r"/\x1b[31m"),
        ("/caf%C3%A9", r"/caf\xe9"),
        ("/" + "x" * 5000, "/" + "x" * 199),
        ("/nowhere?token=pst-secret", "/nowhere"),
    ],
)
def test_a_logged_path_is_one_short_line_of_ascii_without_the_query(client, lines, path, logged):
    client.get(path)
    (line,) = lines()
    assert line.split(" ", 2)[2].startswith(f"{logged} 404 ")


def test_a_prompt_is_not_logged(client, caplog):
    caplog.set_level(logging.DEBUG)
    assert client.post(GENERATE, json=BODY).status_code == 200
    assert client.post(GENERATE, json=BODY | {"parameters": {"sampler": "k_eular"}}).status_code == 400
    assert "secret wish" not in caplog.text


def test_an_internal_error_is_logged_but_not_sent_to_the_client(client, fake_model, caplog, monkeypatch):
    monkeypatch.setattr(fake_model, "failure", RuntimeError("CUDA error at /home/somebody/model.safetensors"))
    response = client.post(GENERATE, json=BODY)
    assert (response.status_code, response.json()) == (500, {"statusCode": 500, "message": INTERNAL_ERROR})
    assert ID.fullmatch(response.headers["x-request-id"])
    assert "somebody" not in str(response.headers)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert response.headers["x-request-id"] in record.getMessage()
    assert record.exc_info
    assert "somebody" in str(record.exc_info[1])


def test_an_error_after_the_response_started_is_raised_again(lines):
    async def broken(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        TestClient(trace_requests(broken)).get("/")
    assert re.fullmatch(r"[0-9a-f]{16} GET / 200 \d+ ms", lines()[-1])


@pytest.mark.parametrize("has_started", [False, True])
def test_a_request_that_is_cancelled_is_answered_unless_its_response_has_begun(lines, has_started):
    sent = []

    async def wait(_scope, _receive, send):
        if has_started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.Event().wait()

    async def cancel():
        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        task = asyncio.ensure_future(trace_requests(wait)(scope, receive, collect))
        await asyncio.sleep(0.01)
        task.cancel()
        await task

    async def receive():
        return {"type": "http.disconnect"}

    async def collect(message):
        sent.append(message)

    asyncio.run(cancel())
    assert [message["status"] for message in sent if "status" in message] == [200 if has_started else 503]
    assert has_started or b"the server is stopping" in sent[-1]["body"]
    assert len(lines()) == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (GENERATE, BODY),
        ("/v1/images/generations", {"prompt": "1girl", "size": "512x768"}),
        ("/ai/upscale", {"image": PNG, "scale": 2}),
        ("/ai/augment-image", {"image": PNG, "req_type": "sketch"}),
        ("/ai/augment-image", {"image": PNG, "req_type": "declutter"}),
    ],
)
def test_server_timing_of_an_image_is_durations_in_ascii_digits(client, path, body):
    timing = client.post(path, json=body).headers["server-timing"]
    parts = dict(part.split(";dur=") for part in timing.split(", "))
    assert parts.keys() - {"queue"} == {"draw", "png"}
    assert ("queue" in parts) == ("sketch" not in body.values())
    assert all(re.fullmatch(r"\d+\.\d", duration, re.ASCII) for duration in parts.values())


def test_a_response_without_an_image_has_no_server_timing(client):
    assert "server-timing" not in client.get("/models").headers
    assert "server-timing" not in client.post(GENERATE, json=BODY | {"input": 1}).headers


def test_a_warning_is_ascii_and_of_limited_length(client):
    body = BODY | {"model": "猫\r\nSet-Cookie: a=b" + "é" * 150}
    warning = client.post(GENERATE, json=body).headers["x-naiad-warning"]
    assert warning.isascii()
    assert warning.isprintable()
    assert len(warning) <= 1000
    assert r"\u732b" in warning


def test_probes_are_logged_only_at_debug_level(client, caplog):
    caplog.set_level(logging.INFO, "naiad.requests")
    for path in ("/live", "/ready", "/"):
        client.get(path)
    assert [
        record.getMessage().split()[2] for record in caplog.records if record.name == "naiad.requests"
    ] == ["/"]
