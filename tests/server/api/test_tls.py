"""HTTP over TLS: the same responses, and the same bounds, although TLS has no half-closed connections."""

import logging
import socket
import ssl
from datetime import UTC, datetime
from threading import Semaphore

import pytest
from fake_model import FakeModel, build_state
from live_server import Clock, exchange, read_rest, read_until, serve_app
from waiting import LIMIT, wait_until

from server.api import protocol
from server.app import create_app
from server.tls.certificates import create_certificates

LIVE = b"GET /live HTTP/1.1\r\nHost: image.novelai.net\r\n\r\n"
BODY = b'{"input": "a", "parameters": {"width": 64, "height": 64}}'
POST = (
    b"POST /ai/generate-image HTTP/1.1\r\nHost: image.novelai.net\r\nContent-Type: application/json\r\n"
    b"Authorization: Bearer pst-somebodys-token\r\nContent-Length: %d\r\n\r\n" % len(BODY)
)


@pytest.fixture(scope="module")
def fake_model():
    return FakeModel()


@pytest.fixture(scope="module")
def clock():
    """The time of the server."""
    return Clock()


@pytest.fixture(scope="module")
def server(model, fake_model, clock, tmp_path_factory):
    """The address of a server over TLS, and the context of a client that trusts it."""
    created = create_certificates(tmp_path_factory.mktemp("tls"), datetime.now(UTC))
    state = build_state(model, fake_model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "LINGER", 0.1)
        with serve_app(create_app(state), context=created.build_context(), clock=clock) as address:
            state.engine.wait_ready()
            yield address, ssl.create_default_context(cafile=created.authority)


@pytest.fixture
def connect(server):
    address, context = server

    def connect():
        connection = socket.create_connection(address, timeout=LIMIT)
        return context.wrap_socket(connection, server_hostname="image.novelai.net")

    return connect


def test_an_image_is_generated_and_nothing_secret_is_logged(connect, caplog):
    caplog.set_level(logging.DEBUG)
    with connect() as connection:
        connection.sendall(POST.replace(b"Content-Length", b"Connection: close\r\nContent-Length") + BODY)
        response = read_rest(connection)
    assert response.startswith(b"HTTP/1.1 200")
    assert b"PK\x03\x04" in response
    assert "somebodys" not in caplog.text
    assert "PRIVATE KEY" not in caplog.text


def test_what_is_not_http_is_refused_in_the_envelope(connect, caplog):
    with connect() as connection:
        connection.sendall(b"hello\r\n\r\n")
        response = read_rest(connection)
    assert response.startswith(b"HTTP/1.1 400")
    assert b"not HTTP/1.1" in response
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_client_that_closes_frees_the_device_without_a_warning(connect, fake_model, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    gate = Semaphore(0)
    monkeypatch.setattr(fake_model, "gate", gate)
    before, finished = len(fake_model.evaluations), len(fake_model.finished)
    with connect() as connection:
        connection.sendall(POST + BODY)
        wait_until(lambda: len(fake_model.evaluations) > before)
    wait_until(lambda: "generate-image 499" in caplog.text)
    gate.release(100)
    assert len(fake_model.finished) == finished
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_plain_http_and_broken_handshakes_do_no_harm(server, clock, connect, caplog):
    address, _ = server
    assert exchange(address, LIVE)[:4] != b"HTTP"
    socket.create_connection(address).close()
    clock.advance(0)
    with connect() as connection:
        connection.sendall(LIVE)
        assert read_until(connection, b"alive").startswith(b"HTTP/1.1 200")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
