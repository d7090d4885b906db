"""A server process that is asked to stop, whatever its application and its clients do."""

import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial

import pytest
from paths import ROOT

PROGRAM = """
import asyncio, logging, sys, time
from socket import create_server
from server.api.lifecycle import build_server, stop_on_hangup
from server.api.middleware import trace_requests

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": message["type"] + ".complete"})
        if sys.argv[1] == "hang":
            await asyncio.to_thread(time.sleep, 60)
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/slow":
        await asyncio.sleep(0.4)
    elif scope["path"] == "/large":
        await send({"type": "http.response.body", "body": bytes(50_000_000)})
    elif scope["path"] == "/body":
        await receive()
    await send({"type": "http.response.body", "body": b"done"})

logging.basicConfig(level=logging.WARNING)
server = build_server(trace_requests(app), 64, 1.6)
stop_on_hangup()
listener = create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
try:
    server.run([listener])
except KeyboardInterrupt:
    pass
"""


class Process:
    """A server process, and a connection to it on which a request was sent."""

    def __init__(self, stack, path="/", shutdown="end", before=None):
        command, pipe = [sys.executable, "-P", "-c", PROGRAM, shutdown], subprocess.PIPE
        self.process = stack.enter_context(
            subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, preexec_fn=before)
        )
        stack.callback(self.process.kill)
        assert self.process.stdout is not None
        port = int(self.process.stdout.readline())
        self.connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        body = b"Content-Length: 9\r\n\r\n{" if path == "/body" else b"\r\n"
        self.connection.sendall(b"GET %s HTTP/1.1\r\nHost: localhost\r\n%s" % (path.encode(), body))
        self.connection.recv(15)

    def end(self, *signals):
        """Send signals, and return the seconds until the process has ended, its status and its log."""
        started = time.monotonic()
        for number in signals:
            self.process.send_signal(number)
            time.sleep(0.1)
        _, log = self.process.communicate(timeout=20)
        return time.monotonic() - started, self.process.returncode, log


@pytest.fixture
def start():
    with ExitStack() as stack:
        yield partial(Process, stack)


@pytest.mark.parametrize(
    ("path", "shutdown"), [("/", "end"), ("/large", "end"), ("/body", "end"), ("/", "hang")]
)
def test_a_server_has_stopped_within_drain_seconds(start, path, shutdown):
    seconds, status, log = start(path, shutdown).end(signal.SIGTERM)
    assert seconds < 2
    assert status in (0, -signal.SIGTERM)
    assert "Traceback" not in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_request_is_finished_after_a_signal(start, number):
    process = start("/slow")
    seconds, status, log = process.end(number)
    assert b"done" in process.connection.recv(1000)
    assert seconds < 1.5
    assert status == (0 if number is signal.SIGINT else -signal.SIGTERM)
    assert log == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_second_signal_ends_the_process_at_once(start, number):
    seconds, status, log = start("/", "hang").end(signal.SIGTERM, number)
    assert seconds < 1
    assert status == 128 + (signal.SIGTERM if number is signal.SIGHUP else number)
    assert "Traceback" not in log


def test_a_hangup_that_is_ignored_stays_ignored(start):
    process = start(before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.process.wait(0.5)
    assert process.end(signal.SIGTERM)[1] == -signal.SIGTERM
