"""A limited number of connections, over sockets: which of them are closed for new ones."""

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Semaphore

import pytest
from fake_model import FakeModel, build_state
from live_server import exchange, read_rest, serve
from waiting import LIMIT, wait_until

from server.api import lifecycle

LIVE = b"GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
POST = b"POST /ai/generate-image HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
BODY = b'{"input": "a", "parameters": {"width": 64, "height": 64, "steps": 1}}'
GENERATE = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


def connect(stack, address, sent=b""):
    connection = stack.enter_context(socket.create_connection(address, timeout=LIMIT))
    connection.sendall(sent)
    return connection


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /live HT", POST, POST + b"Content-Length: 9\r\n\r\n{", LIVE.replace(b"close", b"keep-alive")],
    ids=["nothing", "half a line", "half the headers", "half a body", "a request before"],
)
def test_waiting_connections_lose_their_place_to_new_ones_and_running_requests_do_not(model, sent):
    gate, fake_model = Semaphore(0), None
    fake_model = FakeModel(gate)
    with (
        serve(build_state(model, fake_model), connections=4) as address,
        ExitStack() as stack,
        ThreadPoolExecutor(1) as threads,
    ):
        try:
            running = threads.submit(exchange, address, GENERATE)
            wait_until(lambda: fake_model.evaluations)
            waiting = [connect(stack, address, sent) for _ in range(12)]
            for _ in range(3):
                assert exchange(address, LIVE).startswith(b"HTTP/1.1 200")
            assert b"HTTP/1.1 4" not in read_rest(waiting[0])  # closed
        finally:
            gate.release(100)
        assert running.result(LIMIT).startswith(b"HTTP/1.1 200")


def test_a_connection_is_refused_if_all_others_are_being_answered(model, caplog):
    gate = Semaphore(0)
    fake_model = FakeModel(gate)
    state = build_state(model, fake_model)
    with serve(state, connections=3) as address, ThreadPoolExecutor(3) as threads:
        try:
            running = [threads.submit(exchange, address, GENERATE) for _ in range(3)]
            wait_until(lambda: state.engine.waiting == 2)
            refused = exchange(address)
            assert refused.startswith(b"HTTP/1.1 503")
            assert b"too many connections" in refused
        finally:
            gate.release(100)
        assert all(each.result(LIMIT).startswith(b"HTTP/1.1 200") for each in running)
        assert exchange(address, LIVE).startswith(b"HTTP/1.1 200")
    assert "3 connections are open" in caplog.text


@pytest.mark.parametrize(
    ("files", "asked", "limit"), [(1024, 512, 512), (128, 512, 64), (64, 512, 16), (-1, 9999, 9999), (128, 20, 20)]
)  # fmt: skip
def test_the_file_descriptors_limit_the_connections(monkeypatch, files, asked, limit):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert lifecycle._limit_connections(asked) == limit
