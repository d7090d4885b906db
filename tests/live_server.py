"""A server on a socket, run in a thread, and raw exchanges with it."""

import socket
from contextlib import contextmanager
from threading import Thread
from time import monotonic, sleep

from server.api.lifecycle import build_server
from server.app import create_app

LIMIT = 20
"""Seconds after which a wait fails; reached only when something is broken."""


@contextmanager
def serve(state, connections=512):
    """Serve an application's state on a free port of 127.0.0.1; yields its address."""
    with serve_app(create_app(state), connections) as address:
        state.engine.wait_ready()
        yield address


@contextmanager
def serve_app(app, connections=512, context=None):
    """Serve an ASGI application on a free port of 127.0.0.1, over TLS with a context; yields its address."""
    server = build_server(app, connections, drain_seconds=LIMIT, context=context)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = Thread(target=server.run, args=([listening],))
        thread.start()
        wait_until(lambda: server.started)
        try:
            yield listening.getsockname()
        finally:
            server.should_exit = True
            thread.join()


def exchange(address, *pieces, pause=0.0):
    """Send bytes and return all that the server sends until it closes the connection, which it must."""
    with socket.create_connection(address, timeout=LIMIT) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                sleep(pause)
        except ConnectionError:  # the server closed the connection before it had read everything
            pass
        return read_rest(connection)


def read_rest(connection):
    received = bytearray()
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionError:
        pass
    return bytes(received)


def wait_until(condition):
    deadline = monotonic() + LIMIT
    while not condition():
        assert monotonic() < deadline
        sleep(0.005)
