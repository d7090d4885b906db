"""Claim: a server under load loses no request, draws no wrong picture, and needs no more memory with time.

Eight clients with tokens of accounts or at addresses of their own request pictures of a `naiad serve --demo` for some
minutes: all sizes, samplers, steps and actions, streams, bursts, retries, cancellations, bad requests, and hang-ups at
every stage. The first third of the time is a warm-up. Wanted: every client that waits is answered, no 5xx, the pixels
that the same request gets when the server has nothing else to do (with `--batching shared` within rounding), as many
threads and descriptors at the end as after the warm-up, the 99th percentile of `GET /live` under 100 ms for another
client, and resident memory that grows by less than 1 MB a minute after the warm-up: under load by least squares over
the minutes' means, of which two standard errors are subtracted, and idle, once freed memory is given back. Idle it may
be 16 MB more besides, because caches still fill, and pages of which a part is in use cannot be given back; what was in
use, by glibc's `mallinfo2`, grew by 0.1 MB a minute.
Run: python -m benchmarks.load [--minutes 15] [--batching exact|shared] [--seed 1]; exit status 1 if a bound is missed.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import linear_regression, mean
from tempfile import TemporaryDirectory

import httpx

from benchmarks.attack_server import Figures, Server, watch_live
from benchmarks.load_client import TIMEOUT, Client, Identity, Load, Tally, compare_pictures
from benchmarks.load_requests import PictureRequest, build_fixed_requests, read_pictures
from benchmarks.machine import machine
from pipelines.types import Pixels

RESULTS = Path(__file__).parent / "results" / "load.json"
ROOT = Path(__file__).parents[1]
OWN_TOKEN = "pst-the-operators-own"
ACCOUNTS = {"anna": "priority = 10", "ben": "concurrency = 2", "cleo": "concurrency = 1", "dan": ""}
"""Accounts by name, with their limits; the token of each is its name after a prefix."""
OPERATORS = 4
"""Clients with the server's own token; each has another address."""
READABLE = ("/models", "/user/subscription", "/queue", "/metrics")
WARM_UP = 1 / 3
TOLERANCE = {"exact": 0.0, "shared": 1.0}
"""Largest mean difference of a picture's pixels, of 255: rounding that a sampler amplifies, but no other picture."""
MOST_SLOPE, MOST_LIVE_MS, MOST_NEW = 1.0, 100.0, 2
MOST_FILLED = 16.0
"""MB of idle memory that may be new in a run of any length: a cache that fills, a heap with gaps; a leak goes on."""
LARGE, TRIMS = 17_000_000, 4
FULL_MINUTE = 45
"""Measurements in a minute that counts; there is one a second."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What the server's process uses at a time."""

    seconds: float
    mb: float
    threads: int
    descriptors: int


def measure_usage(pid: int) -> Usage:
    """Return what a process uses now."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return Usage(
        time.monotonic(), int(fields["VmRSS"].split()[0]) * 1.024e-3, int(fields["Threads"]), descriptors
    )


def start_server(folder: Path, batching: str) -> Server:
    """Start a server with accounts and a queue that bursts can fill."""
    accounts = folder / "tokens.toml"
    accounts.write_text(
        "".join(
            f'[[account]]\nname = "{name}"\ntoken = "pst-of-{name}"\n{limits}\n'
            for name, limits in ACCOUNTS.items()
        )
    )
    settings = {
        "engine.queue_limit": 10, "engine.batching": batching, "drain_seconds": 10, "metadata": "full",
        "token": OWN_TOKEN, "tokens": accounts, "signing_key": folder / "signing.pem",
    }  # fmt: skip
    return Server(ROOT, settings=settings)


def list_identities() -> Iterator[Identity]:
    """Yield who the clients are."""
    for name in ACCOUNTS:
        yield Identity(f"pst-of-{name}", "127.0.0.1")
    for number in range(OPERATORS):
        yield Identity(OWN_TOKEN, f"127.0.0.{2 + number}")


def draw_alone(address: tuple[str, int], requests: Sequence[PictureRequest]) -> dict[str, list[Pixels]]:
    """Return the pixels of each request's pictures, from a server that has nothing else to do."""
    expected: dict[str, list[Pixels]] = {}
    headers = {"Authorization": f"Bearer {OWN_TOKEN}"}
    with httpx.Client(base_url="http://{}:{}".format(*address), headers=headers, timeout=TIMEOUT) as client:
        for request in (*requests, *requests):
            response = client.post(request.path, json=request.body)
            assert response.status_code == 200, f"{request.name}: {response.status_code} {response.text}"
            pictures = read_pictures(response.content)
            difference = compare_pictures(pictures, expected.setdefault(request.name, pictures))
            assert difference == 0, f"{request.name}: drawn alone twice, the pictures differ by {difference}"
    return expected


def list_paths(address: tuple[str, int]) -> list[str]:
    """Return the paths of the API, whose parameters are in braces."""
    response = httpx.get("http://{}:{}/openapi.json".format(*address), timeout=TIMEOUT)
    return list(response.json()["paths"])


async def run_clients(load: Load, seconds: float, name: str) -> None:
    """Let all clients act for some seconds."""
    deadline = time.monotonic() + seconds
    clients = [
        Client(load, identity, Random(f"{name} {number}"))
        for number, identity in enumerate(list_identities())
    ]
    await asyncio.gather(*(client.run(deadline) for client in clients))


async def run_measured(load: Load, seconds: float, name: str, pid: int) -> list[Usage]:
    """Do as `run_clients`, and return what the server used in each second."""
    usages: list[Usage] = []
    clients = asyncio.create_task(run_clients(load, seconds, name))
    while not clients.done():
        usages.append(measure_usage(pid))
        await asyncio.wait([clients], timeout=1)
    await clients
    return usages


def settle(server: Server) -> Usage:
    """Return what the server uses once it has closed what its clients left, and given freed memory back.

    What is left of the requests that free it, or is in cycles that Python has not collected, counts if it is measured
    too early, so the least of several measurements is returned.
    """
    time.sleep(5)
    url = "http://{}:{}/ai/generate-image".format(*server.address)
    headers = {"Authorization": f"Bearer {OWN_TOKEN}", "Content-Type": "application/json"}
    usages: list[Usage] = []
    for _ in range(TRIMS):
        # the server trims its heap after a body of this size
        httpx.post(url, content=b'{"input": "%s"}' % (b"a" * LARGE), headers=headers, timeout=TIMEOUT)
        time.sleep(2)
        usages.append(measure_usage(server.process.pid))
    return min(usages, key=lambda usage: usage.mb)


def measure(minutes: float, batching: str, seed: int, folder: Path) -> dict[str, object]:
    """Run the load on a server of its own, and return what was found."""
    server = start_server(folder, batching)
    try:
        server.wait_ready()
        result = run_load(server, 60 * minutes, batching, seed)
        result["stop_seconds"] = server.stop()
    finally:
        server.process.kill()
        server.process.wait()
    lines = [line for _, line in server.lines if "Traceback" in line or " ERROR " in line]
    result |= {"minutes": minutes, "seed": seed, "log_errors": lines[:20]}
    return result | {"misses": find_misses(result)}


def run_load(server: Server, seconds: float, batching: str, seed: int) -> dict[str, object]:
    """Let clients act on a server that is ready, and return what was found."""
    tally, figures = Tally(), Figures()
    idle = {"start": settle(server)}
    load = prepare_load(server.address, TOLERANCE[batching], tally)
    asyncio.run(run_clients(load, WARM_UP * seconds, f"warm-up {seed}"))
    idle["warm"] = settle(server)
    with watch_live(server, figures):
        usages = asyncio.run(run_measured(load, (1 - WARM_UP) * seconds, f"load {seed}", server.process.pid))
    idle["end"] = settle(server)
    return summarize(tally, figures, usages, idle)


def prepare_load(address: tuple[str, int], tolerance: float, tally: Tally) -> Load:
    """Return the load for a server, which draws the expected pictures first."""
    requests, paths = build_fixed_requests(), list_paths(address)
    readable = [path for path in READABLE if path in paths]
    can_cancel = any(path.startswith("/queue/") for path in paths)
    return Load(address, requests, draw_alone(address, requests), tolerance, readable, can_cancel, tally)


def summarize(
    tally: Tally, figures: Figures, usages: Sequence[Usage], idle: Mapping[str, Usage]
) -> dict[str, object]:
    """Return the figures of a run; `idle` is what the server used while it had nothing to do."""
    means = average_by_minute(usages)
    slope, error = fit_line(means)
    minutes = (idle["end"].seconds - idle["warm"].seconds) / 60
    return {
        "requests": sum(tally.answers.values()),
        "pictures": tally.pictures,
        "answers": dict(sorted(tally.answers.items())),
        "problems": {kind: texts[:20] for kind, texts in tally.problems.items()},
        "largest_mean_difference": round(max(tally.differences.values(), default=0.0), 4),
        "memory_mb_per_minute": {
            "under load": round(slope, 2),
            "standard error": round(error, 2),
            "idle": round((idle["end"].mb - idle["warm"].mb) / minutes, 2),
        },
        "memory_mb_by_minute": [round(each) for each in means],
        "idle_memory_mb": {name: round(usage.mb) for name, usage in idle.items()},
        "idle_threads": {name: usage.threads for name, usage in idle.items()},
        "idle_descriptors": {name: usage.descriptors for name, usage in idle.items()},
        "most_threads": max(usage.threads for usage in usages),
        "most_descriptors": max(usage.descriptors for usage in usages),
        "live_ms": {"p50": figures.live_p50_ms, "p99": figures.live_p99_ms, "max": figures.live_worst_ms},
        "live_failed": figures.live_failed,
    }


def average_by_minute(usages: Sequence[Usage]) -> list[float]:
    """Return the mean resident memory of each full minute in MB."""
    minutes: dict[int, list[float]] = {}
    for usage in usages:
        minutes.setdefault(int((usage.seconds - usages[0].seconds) / 60), []).append(usage.mb)
    return [mean(each) for each in minutes.values() if len(each) >= FULL_MINUTE]


def fit_line(values: Sequence[float]) -> tuple[float, float]:
    """Return the slope of the least-squares line through values at 0, 1, 2 …, and its standard error."""
    if len(values) < 3:
        return 0.0, 0.0
    times = range(len(values))
    line = linear_regression(times, values)
    residuals = [value - line.intercept - line.slope * x for x, value in zip(times, values, strict=True)]
    spread = sum((x - mean(times)) ** 2 for x in times)
    return line.slope, (sum(each**2 for each in residuals) / (len(values) - 2) / spread) ** 0.5


def find_misses(result: Mapping[str, object]) -> list[str]:
    """Return which of the wanted bounds do not hold."""

    def grows(name: str) -> bool:
        counts: dict[str, int] = result[name]  # pyright: ignore[reportAssignmentType]
        return counts["end"] > counts["warm"] + MOST_NEW

    live, memory = result["live_ms"], result["memory_mb_per_minute"]
    idle, minutes = result["idle_memory_mb"], result["minutes"]
    assert isinstance(live, dict)
    assert isinstance(memory, dict)
    assert isinstance(idle, dict)
    assert isinstance(minutes, float)
    bounds = {
        "answers and pixels": not result["problems"],
        "memory under load": memory["under load"] - 2 * memory["standard error"] < MOST_SLOPE,
        "idle memory": idle["end"] - idle["warm"] < MOST_FILLED + MOST_SLOPE * minutes * (1 - WARM_UP),
        "threads": not grows("idle_threads"),
        "descriptors": not grows("idle_descriptors"),
        "/live": live["p99"] < MOST_LIVE_MS and not result["live_failed"],
        "log": not result["log_errors"],
    }
    return [name for name, holds in bounds.items() if not holds]


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--batching", choices=TOLERANCE, default="exact")
    parser.add_argument("--seed", type=int, default=1, help="of what the clients do")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file to write")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        result = measure(options.minutes, options.batching, options.seed, Path(folder))
    print(json.dumps(result, indent=1))
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    results |= {options.batching: result | {"machine": machine()}}
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(bool(result["misses"]))


if __name__ == "__main__":
    main()
