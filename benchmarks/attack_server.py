"""A server process under attack, for `attacks`: requests to it, and the measurements taken meanwhile."""

import multiprocessing
import os
import re
import resource
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection, HTTPException
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from threading import Thread
from typing import Any

SETTINGS = {"engine.queue_limit": 8, "api.memory_limit": 2048, "drain_seconds": 5}
LONGEST_STOP = 40
PROCESSES = multiprocessing.get_context("spawn")
"""The process that measures shares no interpreter lock with the attack."""
REQUEST_LINE = re.compile(r"naiad\.requests: [0-9a-f]{16} [A-Z]+ ")
CHANGING = re.compile(r"^[\d-]+ [\d:,]+ |\b[0-9a-f]{16}\b")
KEPT_LINES = 100_000


@dataclass
class Figures:
    """What was measured during one attack; `other` is what the attack itself has found."""

    live_worst_ms: float = 0.0
    live_p50_ms: float = 0.0
    live_p99_ms: float = 0.0
    live_failed: int = 0
    baseline_mib: int = 0
    peak_mib: int = 0
    stop_seconds: float = 0.0
    log_lines: int = 0
    log_repeats: int = 0
    has_traceback: bool = False
    other: dict[str, Any] = field(default_factory=dict)

    def find_misses(self) -> list[str]:
        """Return which of the wanted bounds do not hold."""
        bounds = {
            "/live": self.live_worst_ms < 250 and not self.live_failed,
            "memory": self.peak_mib <= self.baseline_mib + SETTINGS["api.memory_limit"],
            "stop": self.stop_seconds <= SETTINGS["drain_seconds"] + 0.1,  # the process still has to end
            "log": self.log_repeats <= 1 and not self.has_traceback,
        }
        return [name for name, holds in bounds.items() if not holds]


def get(address: tuple[str, int], path: str) -> tuple[int, float]:
    """Return the status of a GET on a new connection, 0 if there is none, and the seconds it took."""
    started = time.monotonic()
    connection = HTTPConnection(*address, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        return response.status, time.monotonic() - started
    except (OSError, HTTPException):
        return 0, time.monotonic() - started
    finally:
        connection.close()


class Server:
    """A server process of the checkout at `root`, with the demo model, which may open `files` files."""

    def __init__(
        self, root: Path, files: int | None = None, settings: Mapping[str, object] = SETTINGS
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = free.getsockname()
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("NAIAD")}
        known = (root / "configs" / "server.toml").read_text()
        chosen = {key: value for key, value in settings.items() if key.split(".")[-1] in known}
        variables = {f"NAIAD_{key.replace('.', '_').upper()}": str(value) for key, value in chosen.items()}
        own = {"OMP_NUM_THREADS": "1", "NAIAD_METADATA": "plain"}  # which needs no signing key
        command = [str(root / ".venv/bin/python"), "-P", "-m", "server", "serve", "--demo"]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.address[1])],
            cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=inherited | own | variables,
            preexec_fn=None if files is None else partial(resource.setrlimit, resource.RLIMIT_NOFILE, (files, files)),
        )  # fmt: skip
        self.stopped = PROCESSES.Event()  # /live is not measured any more
        self.peak_mib, self.line_count = 0, 0
        self.lines: list[tuple[float, str]] = []
        Thread(target=self._read_log, daemon=True).start()

    def _read_log(self) -> None:
        for line in self.process.stdout or ():
            self.line_count += 1
            if self.line_count <= KEPT_LINES:
                self.lines.append((time.monotonic(), line.decode(errors="replace").rstrip()))

    def wait_ready(self) -> None:
        """Wait until the model is loaded."""
        deadline = time.monotonic() + 120
        while get(self.address, "/ready")[0] != 200:
            assert time.monotonic() < deadline, self.lines[-3:]
            assert self.process.poll() is None, self.lines[-3:]
            time.sleep(0.2)

    def connect(self, timeout: float = 60.0) -> socket.socket:
        """Return a new connection."""
        return socket.create_connection(self.address, timeout=timeout)

    def exchange(self, *pieces: bytes, timeout: float = 60.0) -> tuple[int, float]:
        """Send a request; return the response's status, 0 if there is none, and the seconds until its end."""
        started, received = time.monotonic(), b""
        with suppress(OSError), self.connect(timeout) as connection:
            with suppress(ConnectionError):
                for piece in pieces:
                    connection.sendall(piece)
            while piece := connection.recv(65536):
                received = received or piece
        status = received.split(maxsplit=2)[1:2]
        return int(status[0]) if status else 0, time.monotonic() - started

    def ask(self, count: int, *pieces: bytes, timeout: float = 60.0) -> list[int]:
        """Send a request on several connections at once; return the statuses of the responses."""
        statuses: list[int] = []

        def run() -> None:
            statuses.append(self.exchange(*pieces, timeout=timeout)[0])

        threads = [Thread(target=run, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout)
        return sorted(statuses)

    def hold(self, stack: ExitStack, count: int, *pieces: bytes) -> list[socket.socket]:
        """Return several connections on which these bytes were sent; they stay open until the stack is closed."""
        connections: list[socket.socket] = []
        for _ in range(count):
            with suppress(OSError):
                connection = stack.enter_context(self.connect(5))
                connections.append(connection)
                for piece in pieces:
                    connection.sendall(piece)
        return connections

    def measure_memory(self, name: str) -> int:
        """Return a figure of the process's memory in MiB: VmRSS, or VmHWM, its highest value."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{name}:\s+(\d+) kB", status)
        return int(found[1]) // 1024 if found else 0

    def reset_peak(self) -> None:
        """Make VmHWM start again from now."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def begin_stop(self, number: int) -> None:
        """Send a signal that stops the server."""
        self.stopped.set()
        self.peak_mib = self.peak_mib or self.measure_memory("VmHWM")
        self.process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> float:
        """Send a signal and return the seconds until the process has ended; it is killed after LONGEST_STOP."""
        started = time.monotonic()
        self.begin_stop(number)
        try:
            self.process.wait(LONGEST_STOP)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        return round(time.monotonic() - started, 2)


def probe(address: tuple[str, int], ended: Event, pipe: Connection) -> None:
    """Request /live every 50 ms until `ended` is set, then send the statuses and seconds through a pipe."""
    found: list[tuple[int, float]] = []
    pipe.send(None)
    while not ended.wait(0.05):
        answer = get(address, "/live")
        if not ended.is_set():
            found.append(answer)
    pipe.send(found)


@contextmanager
def watch_live(server: Server, figures: Figures) -> Iterator[None]:
    """Measure /live in a process of its own until the block ends, or until the server is stopped."""
    pipe, other = PROCESSES.Pipe()
    process = PROCESSES.Process(target=probe, args=(server.address, server.stopped, other), daemon=True)
    process.start()
    pipe.recv()  # it has started
    yield
    time.sleep(0.2)
    server.stopped.set()
    found = pipe.recv() or [(0, 0.0)]
    process.join()
    seconds = sorted(took for _, took in found)
    figures.live_worst_ms = round(1000 * seconds[-1], 1)
    figures.live_p50_ms = round(1000 * seconds[len(seconds) // 2], 1)
    figures.live_p99_ms = round(1000 * seconds[int(0.99 * (len(seconds) - 1))], 1)
    figures.live_failed = sum(status != 200 for status, _ in found)


def count_repeats(lines: list[tuple[float, str]]) -> int:
    """Return how often the most frequent line, apart from those of requests, occurs within any second."""
    times: dict[str, list[float]] = {}
    for when, line in lines:
        if not REQUEST_LINE.search(line):
            times.setdefault(CHANGING.sub("", line), []).append(when)
    return max((_count_in_a_second(each) for text, each in times.items() if text), default=0)


def _count_in_a_second(times: list[float]) -> int:
    seconds = Counter(int(when - times[0]) for when in times)
    return max(seconds.values())


Attack = Callable[[Server, ExitStack], dict[str, Any]]
"""Attacks a server, which it may stop; returns figures of its own."""


def measure(root: Path, attack: Attack, files: int | None) -> Figures:
    """Run one attack on a server of its own."""
    figures, server = Figures(), Server(root, files)
    try:
        server.wait_ready()
        time.sleep(0.5)
        figures.baseline_mib, before = server.measure_memory("VmRSS"), server.line_count
        server.reset_peak()
        with ExitStack() as stack:
            with watch_live(server, figures):
                figures.other = attack(server, stack)
            if "stop" not in figures.other:
                figures.other["stop"] = server.stop()
        figures.stop_seconds, figures.peak_mib = figures.other.pop("stop"), server.peak_mib
        time.sleep(0.1)
        lines = server.lines[before:]
        figures.log_lines, figures.log_repeats = server.line_count - before, count_repeats(lines)
        figures.has_traceback = any("Traceback" in line for _, line in lines)
    finally:
        server.process.kill()
        server.process.wait()
    return figures
