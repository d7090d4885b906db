"""A server on a socket, run in a thread, raw exchanges with it, and its time, which a test moves."""

import asyncio
import json
import socket
from contextlib import contextmanager, suppress
from select import select
from threading import Thread

from waiting import LIMIT, wait_until

from server.api.lifecycle import build_server
from server.api.protocol import ignore_refusal
from server.app import create_app


class Clock:
    """The time of a server's event loop, which a test moves on instead of waiting for a deadline."""

    def __init__(self):
        self._ahead = 0.0

    def attach(self, loop):
        read = loop.time
        loop.time = lambda: read() + self._ahead
        self._loop = loop

    def advance(self, seconds):
        """Let the server handle what has been sent to it, then let some seconds pass."""
        asyncio.run_coroutine_threadsafe(self._advance(seconds), self._loop).result(LIMIT)

    async def _advance(self, seconds):
        await _settle()
        self._ahead += seconds
        await _settle()


async def _settle():
    """Let the event loop run what is ready, and what that makes ready."""
    for _ in range(50):
        await asyncio.sleep(0)


@contextmanager
def serve(state, connections=512, clock=None):
    """Serve an application's state on a free port of 127.0.0.1; yields its address."""
    count = state.metrics.count_refusal
    with serve_app(create_app(state), connections, clock=clock, on_refusal=count) as address:
        state.engine.wait_ready()
        yield address


@contextmanager
def serve_app(app, connections=512, context=None, clock=None, on_refusal=ignore_refusal):
    """Serve an ASGI application on a free port of 127.0.0.1, over TLS with a context; yields its address."""
    server = build_server(app, connections, 2 * LIMIT, context, on_refusal)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = Thread(target=server.run, args=([listening],))
        thread.start()
        wait_until(lambda: server.started)
        if clock is not None:
            clock.attach(server.servers[0].get_loop())
        try:
            yield listening.getsockname()
        finally:
            server.should_exit = True
            thread.join()


def build_get(path, *headers):
    """A request after which the server closes the connection."""
    lines = (f"GET {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers)
    return "\r\n".join((*lines, "", "")).encode()


def build_post(path, body, *headers, close=True):
    """A request with an object as JSON, after which the server closes the connection unless it is to stay open."""
    content = json.dumps(body).encode()
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers)
    lines += (f"Content-Length: {len(content)}", "Connection: close" if close else "Connection: keep-alive")
    return "\r\n".join((*lines, "", "")).encode() + content


def connect(address):
    return socket.create_connection(address, timeout=LIMIT)


def exchange(address, *pieces, between=lambda: None):
    """Send bytes and return all that the server sends until it closes the connection, which it must.

    `between` is called after each piece.
    """
    with connect(address) as connection:
        with suppress(ConnectionError):  # the server closed the connection before it had read everything
            for piece in pieces:
                connection.sendall(piece)
                between()
        return read_rest(connection)


def read_rest(connection):
    return _read(connection, lambda _: False)


def read_until(connection, expected, times=1):
    """Return what was received, up to the piece that completes `expected`; headers and frames may come apart."""
    received = _read(connection, lambda received: received.count(expected) >= times)
    assert received.count(expected) >= times, f"the connection was closed after {received!r}"
    return received


def _read(connection, is_enough):
    received = bytearray()
    with suppress(ConnectionError):
        while not is_enough(received) and (piece := connection.recv(65536)):
            received += piece
    return bytes(received)


def outwait(connection, clock):
    """Let the server's time pass until it closes the connection; return all that it sends."""
    received = bytearray()
    with suppress(ConnectionError):
        while True:
            clock.advance(5)
            if select([connection], [], [], 0)[0]:
                if not (piece := connection.recv(65536)):
                    return bytes(received)
                received += piece
    return bytes(received)
