"""A server process that is asked to stop, whatever its application and its clients do."""

import signal
import subprocess
import sys
from contextlib import ExitStack
from functools import partial

import pytest
from live_server import connect, read_rest, read_until
from paths import ROOT
from waiting import LIMIT

PROGRAM = """
import asyncio, logging, signal, sys, time
from socket import create_server
from server.api.lifecycle import build_server, stop_on_hangup
from server.api.middleware import trace_requests

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": message["type"] + ".complete"})
        print("stopping", flush=True)
        if sys.argv[1] == "hang":
            await asyncio.to_thread(time.sleep, 3600)
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/slow":
        while not server.should_exit:
            await asyncio.sleep(0.01)
    elif scope["path"] == "/large":
        await send({"type": "http.response.body", "body": bytes(50_000_000)})
    elif scope["path"] == "/body":
        await receive()
    await send({"type": "http.response.body", "body": b"done"})

logging.basicConfig(level=logging.WARNING)
server = build_server(trace_requests(app), 64, float(sys.argv[2]))
if sys.argv[1] == "ignore":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
stop_on_hangup()
listener = create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
server.run([listener])
"""


class Process:
    """A server process, and a connection to it on which a response has begun."""

    def __init__(self, stack, path="/", shutdown="end", drain_seconds=3600.0):
        command, pipe = [sys.executable, "-P", "-c", PROGRAM, shutdown, str(drain_seconds)], subprocess.PIPE
        self.process = stack.enter_context(
            subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
        )
        stack.callback(self.process.kill)
        self.connection = stack.enter_context(connect(("127.0.0.1", int(self.read_line()))))
        body = b"Content-Length: 9\r\n\r\n{" if path == "/body" else b"\r\n"
        self.connection.sendall(b"GET %s HTTP/1.1\r\nHost: localhost\r\n%s" % (path.encode(), body))
        read_until(self.connection, b"200")

    def read_line(self):
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self, number):
        """Send a signal, wait until the process has ended, and return its status and its log."""
        self.process.send_signal(number)
        _, log = self.process.communicate(timeout=LIMIT)
        return self.process.returncode, log


@pytest.fixture
def start():
    with ExitStack() as stack:
        yield partial(Process, stack)


@pytest.mark.parametrize(
    ("path", "shutdown"), [("/", "end"), ("/large", "end"), ("/body", "end"), ("/", "hang")]
)
def test_a_server_stops_after_drain_seconds_whatever_is_left(start, path, shutdown):
    status, log = start(path, shutdown, drain_seconds=1.2).end(signal.SIGTERM)
    assert status == 0
    assert "Traceback" not in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_request_is_finished_after_a_signal(start, number):
    process = start("/slow")
    status, log = process.end(number)
    assert b"done" in read_rest(process.connection)
    assert (status, log) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_second_signal_ends_the_process_at_once(start, number):
    process = start("/", "hang")
    process.process.send_signal(signal.SIGTERM)
    assert process.read_line() == "stopping\n"
    status, log = process.end(number)
    assert status == 128 + (signal.SIGTERM if number is signal.SIGHUP else number)
    assert "Traceback" not in log


def test_a_hangup_that_is_ignored_stays_ignored(start):
    process = start(shutdown="ignore")
    process.process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.process.wait(0.3)
    assert process.end(signal.SIGTERM)[0] == 0
