"""Claim: no client keeps the server from answering others, fills its memory, holds up its stop or floods its log.

Runs each attack against a server of its own (`naiad serve --demo` on loopback, with a short queue and the smallest
memory), and measures next to it: how long `GET /live` takes on a connection of its own every 50 ms, the peak of the
resident memory, how long the server takes to stop after SIGTERM while the attackers keep their connections, and how
often a line of the log is repeated within a second (the one line for each request does not count). Wanted: /live under
250 ms, memory under the baseline plus `api.memory_limit`, a stop within `drain_seconds`, no line twice in a second.
Run: python -m benchmarks.attacks [--checkout FOLDER --column NAME] [--only NAME ...]; five minutes.
"""

import argparse
import json
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.attack_bodies import (
    build_chunks,
    build_deep_png,
    build_form,
    build_image_request,
    build_json_request,
    build_picture_request,
    build_scans,
)
from benchmarks.attack_server import SETTINGS, Attack, Figures, Server, get, measure
from benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results" / "attacks.json"
ROOT = Path(__file__).parents[1]
MB = 1_000_000
FEW_FILES = 128
ATTACKS: dict[str, tuple[Attack, int | None]] = {}
"""Attacks by name, with the number of files that their servers may open."""


def register(files: int | None = None) -> Callable[[Attack], Attack]:
    """Return a decorator that adds an attack."""

    def add(attack: Attack) -> Attack:
        ATTACKS[attack.__name__] = attack, files
        return attack

    return add


@register()
def elements_in_a_login(server: Server, _: ExitStack) -> dict[str, Any]:
    """60 MB of `[],` to the one path that takes no token."""
    return {"statuses": server.ask(3, *build_json_request(b"[],", 60 * MB, "/user/login"))}


@register()
def elements_in_a_request(server: Server, _: ExitStack) -> dict[str, Any]:
    """Structure without content, in several forms, to the path that generates."""
    forms = (b"[],", b'"",', b'{"":', b"1,", b'\\"', b'"')
    statuses = [server.ask(1, *build_json_request(form, 40 * MB)) for form in forms]
    return {"statuses": statuses, "together": server.ask(3, *build_json_request(b"[],", 40 * MB))}


@register()
def forms_of_many_lines(server: Server, _: ExitStack) -> dict[str, Any]:
    """Multipart forms that are slow to take apart."""
    return {
        "statuses": [server.ask(1, build_form(piece, 40 * MB)) for piece in (b"\r\n--lin", b"\r\n", b"\r\n-")]
    }


@register()
def slow_decoding(server: Server, _: ExitStack) -> dict[str, Any]:
    """JPEGs of many scans whose senders hang up after a second; then another client wants a small picture."""
    request = build_image_request(build_scans(300))
    with ExitStack() as gone:
        server.hold(gone, 4, request)
        time.sleep(1)
    started = time.monotonic()
    status = server.ask(1, build_picture_request(), timeout=120)
    return {"picture_status": status, "picture_seconds": round(time.monotonic() - started, 2)}


@register()
def large_images(server: Server, _: ExitStack) -> dict[str, Any]:
    """Eight images of 33 million pixels with 16 bits a channel."""
    return {"statuses": server.ask(8, build_image_request(build_deep_png()), timeout=120)}


@register()
def gone_from_the_queue(server: Server, stack: ExitStack) -> dict[str, Any]:
    """One long job, four that wait and whose clients hang up; then a client that stays."""
    server.hold(stack, 1, build_picture_request(768, 50))
    time.sleep(1)
    with ExitStack() as gone:
        server.hold(gone, 4, build_picture_request(512, 50))
        time.sleep(1)
    time.sleep(0.5)
    return {"status": server.ask(1, build_picture_request(), timeout=120)}


@register()
def bodies_that_arrive(server: Server, stack: ExitStack) -> dict[str, Any]:
    """Sixteen bodies of 60 MB, of which the last byte never comes, also at the stop."""
    head, body = build_json_request(b"A", 60 * MB)
    connections = server.hold(stack, 16, head)
    for start in range(0, len(body) - 1, MB):  # all of them at the same pace
        for connection in connections:
            with suppress(OSError):
                connection.sendall(body[start : min(start + MB, len(body) - 1)])
    time.sleep(2)
    return {}


@register()
def bodies_that_wait(server: Server, stack: ExitStack) -> dict[str, Any]:
    """A long job, and twelve requests with a small image in a body of 60 MB that wait for it."""
    server.hold(stack, 1, build_picture_request(768, 50))
    time.sleep(1)
    server.hold(stack, 12, build_image_request(None, padding=60 * MB))
    time.sleep(2)
    return {}


@register()
def elements_that_wait(server: Server, stack: ExitStack) -> dict[str, Any]:
    """A long job, and four requests with 20 MB of `[],` that wait for it."""
    server.hold(stack, 1, build_picture_request(768, 50))
    time.sleep(1)
    server.hold(stack, 4, build_image_request(None, junk=b"[" + b"[]," * (7 * MB) + b"1]"))
    time.sleep(2)
    return {}


@register()
def blanks_in_base64(server: Server, _: ExitStack) -> dict[str, Any]:
    """60 MB of Base64 of which every other character is a blank."""
    return {"statuses": server.ask(3, *build_json_request(b"A ", 60 * MB))}


@register()
def refused_uploads(server: Server, _: ExitStack) -> dict[str, Any]:
    """Sixteen clients that send 16 MB to a path that does not exist, and read the answer afterwards."""
    return {"statuses": dict(Counter(server.ask(16, *build_json_request(b"A", 16 * MB, "/ai/nothing"))))}


@register()
def chunks_of_one_byte(server: Server, _: ExitStack) -> dict[str, Any]:
    """200,000 chunks of one byte, on four connections."""
    return {"statuses": server.ask(4, build_chunks(200_000))}


@register(FEW_FILES)
def idle_connections(server: Server, stack: ExitStack) -> dict[str, Any]:
    """300 connections on which nothing is sent, to a server with 128 descriptors."""
    return crowd(server, stack)


@register(FEW_FILES)
def unfinished_headers(server: Server, stack: ExitStack) -> dict[str, Any]:
    """300 connections with half of the headers."""
    return crowd(server, stack, b"GET /live HTTP/1.1\r\nHost: localhost\r\n")


@register(FEW_FILES)
def unfinished_bodies(server: Server, stack: ExitStack) -> dict[str, Any]:
    """300 connections with the beginning of a body."""
    return crowd(server, stack, build_json_request(b"A", MB)[0] + b'{"a')


def crowd(server: Server, stack: ExitStack, sent: bytes = b"") -> dict[str, Any]:
    """Open 300 connections, send something on each, and ask for a picture ten seconds later."""
    connections = server.hold(stack, 300, sent)
    time.sleep(10)
    return {"connections": len(connections), "picture_status": server.ask(1, build_picture_request())}


@register()
def not_http(server: Server, _: ExitStack) -> dict[str, Any]:
    """Two thousand connections that send something else than HTTP."""
    hello = b"\x16\x03\x01\x02\x00hello\r\n\r\n"
    return {"statuses": dict(Counter(server.exchange(hello, timeout=5)[0] for _ in range(2000)))}


@register()
def unread_responses(server: Server, stack: ExitStack) -> dict[str, Any]:
    """Six clients that ask for large images and read nothing, also at the stop."""
    request = build_image_request(None, upscale=4.0)
    for connection in server.hold(stack, 6):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(request)
    time.sleep(15)
    return {}


@register()
def a_long_job_at_the_stop(server: Server, stack: ExitStack) -> dict[str, Any]:
    """A job that takes longer than the drain."""
    (connection,) = server.hold(stack, 1, build_picture_request(1024, 50))
    time.sleep(1)
    return {"stop": server.stop(), "status": read_status(connection)}


@register()
def a_second_signal(server: Server, stack: ExitStack) -> dict[str, Any]:
    """A second SIGTERM half a second after the first, while a job runs; the time is measured from the second."""
    (connection,) = server.hold(stack, 1, build_picture_request(1024, 50))
    time.sleep(1)
    server.begin_stop(signal.SIGTERM)
    time.sleep(0.5)
    return {"stop": server.stop(), "status": read_status(connection), "exit": server.process.returncode}


@register()
def a_closed_terminal(server: Server, stack: ExitStack) -> dict[str, Any]:
    """SIGHUP while a picture is drawn."""
    (connection,) = server.hold(stack, 1, build_picture_request(256, 20))
    time.sleep(0.2)
    return {"stop": server.stop(signal.SIGHUP), "status": read_status(connection)}


def read_status(connection: socket.socket) -> str:
    """Return the status of the response on a connection, or "none"."""
    try:
        return connection.recv(12).decode()[-3:] or "none"
    except OSError:
        return "none"


def measure_loading(root: Path) -> dict[str, Any]:
    """Return the seconds until a server has ended that is stopped while it loads, and its status, by signal."""
    result: dict[str, Any] = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        server = Server(root)
        while get(server.address, "/live")[0] != 200:
            time.sleep(0.02)
        result[number.name] = [server.stop(number), server.process.returncode]
    return result


def format_row(name: str, found: Figures) -> str:
    """Return a row of the table."""
    live = f"{found.live_worst_ms:8.0f} {found.live_p99_ms:8.0f} {found.live_failed:6}"
    memory = f"{found.baseline_mib:5} {found.peak_mib:5}"
    misses = ", ".join(found.find_misses()) or "holds"
    return f"{name:24} {live} {memory} {found.stop_seconds:6.2f} {found.log_lines:8} {found.log_repeats:6}  {misses}"


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkout", type=Path, default=ROOT, help="folder of the checkout that is attacked")
    parser.add_argument("--column", default="now", help="name of the figures in results/attacks.json")
    parser.add_argument("--only", nargs="*", choices=[*ATTACKS, "loading"], default=[*ATTACKS, "loading"])
    arguments = parser.parse_args()
    columns = json.loads(RESULTS.read_text())["columns"] if RESULTS.exists() else {}
    column: dict[str, Any] = columns.setdefault(arguments.column, {})
    print(f"{'':24} /live ms, p99, failed; MiB, peak; seconds to stop; log lines, repeats in a second")
    for name in arguments.only:
        if name == "loading":
            column[name] = measure_loading(arguments.checkout)
            print(f"{name:24} {column[name]}")
        else:
            found = measure(arguments.checkout, *ATTACKS[name])
            column[name] = asdict(found) | {"misses": found.find_misses()}
            print(format_row(name, found), found.other, flush=True)
        result = {"settings": SETTINGS, "columns": columns, "machine": machine()}
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
