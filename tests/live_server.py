"""A server on a socket, run in a thread, and raw exchanges with it."""

import socket
from contextlib import contextmanager
from threading import Thread
from time import monotonic, sleep

import uvicorn

from server.api.protocol import Protocol
from server.app import create_app

LIMIT = 20
"""Seconds after which a wait fails; reached only when something is broken."""


@contextmanager
def serve(state):
    """Serve an application on a free port of 127.0.0.1; yields its address."""
    server = uvicorn.Server(uvicorn.Config(create_app(state), http=Protocol, ws="none", log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = Thread(target=server.run, args=([listening],))
        thread.start()
        wait_until(lambda: server.started)
        state.engine.wait_ready()
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
