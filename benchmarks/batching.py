"""Claim: shared passes draw more pictures a minute, and a short request need not wait for long ones.

Three servers with the same weights get the same load: naiad with `engine.batching = "shared"`, naiad with "exact", and
benchmarks/plain_server.py, diffusers behind a lock. In each round they are started one after another. Throughput:
1, 2, 4 … clients, each of which requests one small picture after another, in pictures a minute, and in those a minute
of the server's CPU time, which other programs disturb less. Short behind long: one client keeps two long requests
waiting, another sends short ones, in seconds until a short one is answered. Medians over the rounds; wanted is a wait
of at most a quarter of that for the plain server. On a CPU only ratios count.
Run: python -m benchmarks.batching [--rounds 3] [--only throughput|waiting]; half an hour on a CPU.
On a GPU: python -m benchmarks.batching --full [CHECKPOINT], by default with random weights; wanted are 1.2 times the
plain server's pictures a minute at 832x1216, and 2 times at 512x512. Run by gpu.sh.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Event, Thread

import httpx
import torch

from benchmarks.checkout import Checkout
from benchmarks.fullsize import stored_shapes, write
from benchmarks.machine import machine
from demo.checkpoint import DEMO

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
PLAIN, SERVERS = "one by one", ("one by one", "exact", "shared")
PARTS = ("throughput", "waiting")
MOST_WAIT = 0.25
"""Wanted: the wait of a short request behind long ones, relative to the plain server's."""
TIMEOUT = 1800.0


@dataclass(frozen=True, slots=True)
class Picture:
    """What a client requests."""

    width: int
    height: int
    steps: int
    count: int = 1

    @property
    def name(self) -> str:
        return f"{self.width}x{self.height}, {self.steps} steps"

    def build_body(self, seed: int) -> dict[str, object]:
        """Return the body of a request."""
        parameters = {
            "width": self.width, "height": self.height, "steps": self.steps, "n_samples": self.count,
            "seed": seed, "scale": 5.0, "sampler": "k_euler", "noise_schedule": "native", "negative_prompt": "lowres",
        }  # fmt: skip
        return {"input": "1girl, red hair, blue background", "parameters": parameters}


@dataclass(frozen=True, slots=True)
class Setup:
    """The load.

    Attributes:
        goals: the pictures of the throughput, with how many times the plain server's are wanted; None for no goal.
        pictures: the fewest that the clients of a measurement request together; each requests two or more.
        shorts: short requests that are sent behind the long ones, in each round.
        settings: of naiad, by environment variable.
    """

    checkpoint: Path | None
    goals: Mapping[Picture, float | None]
    clients: Sequence[int]
    pictures: int
    long: Picture
    short: Picture
    shorts: int
    settings: Mapping[str, str]


CPU = Setup(
    DEMO, {Picture(64, 64, 12): None, Picture(256, 256, 8): None}, (1, 2, 4, 8), 8,
    Picture(512, 768, 40, 4), Picture(256, 256, 8), 2, {},
)  # fmt: skip
SMALL = replace(
    CPU, goals={Picture(64, 64, 4): None}, clients=(1, 4), pictures=4, long=Picture(256, 384, 20, 2), shorts=2
)
FULL = Setup(
    None, {Picture(832, 1216, 28): 1.2, Picture(512, 512, 28): 2.0}, (1, 2, 4, 8, 16), 8,
    Picture(1024, 1024, 50, 4), Picture(512, 512, 20), 6,
    {"NAIAD_ENGINE_ACTIVE_IMAGES": "17"},
)  # fmt: skip


def start_server(name: str, setup: Setup, device: str, checkout: Checkout) -> AbstractContextManager[str]:
    """Start one of the servers; the context is its address."""
    assert setup.checkpoint is not None
    arguments = setup.checkpoint, "--device", device
    if name == PLAIN:
        return checkout.serve_module("benchmarks.plain_server", *arguments)
    own = {"NAIAD_ENGINE_BATCHING": name, "NAIAD_DRAIN_SECONDS": "2"}
    return checkout.serve(*arguments, variables={**setup.settings, **own})


def request_picture(client: httpx.Client, picture: Picture, seed: int) -> float:
    """Request a picture, and return the seconds until it has arrived."""
    started = time.perf_counter()
    response = client.post("/ai/generate-image", json=picture.build_body(seed))
    assert response.status_code == 200, f"{picture.name}: {response.status_code} {response.text}"
    assert len(response.content) > 1000
    return time.perf_counter() - started


@contextmanager
def open_client(address: str) -> Iterator[httpx.Client]:
    """Open a client that waits for long answers."""
    with httpx.Client(base_url=address, timeout=TIMEOUT, trust_env=False) as client:
        yield client


def read_cpu_seconds() -> float:
    """Return the CPU seconds that this process's children, which are the server, have used."""
    processes = (path.read_text().split() for path in Path("/proc/self/task").glob("*/children"))
    seconds = 0.0
    for process in (number for numbers in processes for number in numbers):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def measure_throughput(address: str, picture: Picture, clients: int, least: int) -> tuple[float, float]:
    """Return the pictures a minute that some clients get together, and those of a minute of the server's CPU time."""
    each = max(2, -(-least // clients))

    def run(number: int) -> None:
        with open_client(address) as client:
            for index in range(each):
                request_picture(client, picture, 1000 * number + index + 1)

    started, cpu_seconds = time.perf_counter(), read_cpu_seconds()
    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(run, range(clients)))
    pictures = 60 * clients * each * picture.count
    return pictures / (time.perf_counter() - started), pictures / (read_cpu_seconds() - cpu_seconds)


@contextmanager
def keep_waiting(address: str, picture: Picture, count: int = 2) -> Iterator[None]:
    """Keep some requests waiting; the last ones are not waited for, and end with the server."""
    ended = Event()

    def run(number: int) -> None:
        with suppress(httpx.TransportError, AssertionError), open_client(address) as client:
            for index in range(1000):
                if ended.is_set():
                    return
                request_picture(client, picture, 1000 * number + index + 1)

    for number in range(count):
        Thread(target=run, args=(number,), daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def measure_waiting(address: str, setup: Setup) -> list[float]:
    """Return the seconds that short requests took behind long ones."""
    waits: list[float] = []
    with keep_waiting(address, setup.long), open_client(address) as client:
        time.sleep(2)  # until the first of them has begun
        for number in range(setup.shorts):
            waits.append(request_picture(client, setup.short, 7 + number))
            time.sleep(0.5)
    return waits


Measured = dict[str, dict[str, dict[str, list[float]]]]
"""Values of all rounds, by part, measurement and server."""


def measure_round(address: str, name: str, setup: Setup, parts: Sequence[str], measured: Measured) -> None:
    """Measure one server, once."""

    def add(part: str, measurement: str, values: Sequence[float]) -> None:
        rows = measured.setdefault(part, {}).setdefault(measurement, {})
        rows.setdefault(name, []).extend(round(value, 3) for value in values)
        print(f"{part:23} {measurement:32} {name:11} {rows[name][-1]:9.2f}", flush=True)

    for picture in (*setup.goals, setup.short):
        with open_client(address) as client:
            request_picture(client, picture, 1)  # what is only slow once
    if "throughput" in parts:
        for picture in setup.goals:
            for clients in setup.clients:
                name_of_load = f"{picture.name}, {clients} clients"
                pictures, pictures_by_cpu = measure_throughput(address, picture, clients, setup.pictures)
                add("throughput", name_of_load, [pictures])
                add("throughput by CPU time", name_of_load, [pictures_by_cpu])
    if "waiting" in parts:
        with open_client(address) as client:
            add("waiting", "alone", [request_picture(client, setup.short, 2)])
        add("waiting", "behind long ones", measure_waiting(address, setup))


def summarize(measured: Measured) -> dict[str, dict[str, dict[str, float]]]:
    """Return the medians relative to the plain server's."""
    return {
        part: {
            measurement: {
                name: round(median(values) / median(rows[PLAIN]), 3)
                for name, values in rows.items()
                if name != PLAIN
            }
            for measurement, rows in rows_of_part.items()
        }
        for part, rows_of_part in measured.items()
    }


def find_misses(setup: Setup, ratios: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Return which goals are missed."""
    misses = [
        f"waiting, {name}: {ratio} of the plain server's"
        for name, ratio in ratios.get("waiting", {}).get("behind long ones", {}).items()
        if ratio > MOST_WAIT
    ]
    throughput = ratios.get("throughput", {})
    for picture, goal in setup.goals.items():
        best = max(
            (row["shared"] for name, row in throughput.items() if name.startswith(picture.name)), default=0.0
        )
        if goal is not None and throughput and best < goal:
            misses.append(f"throughput of {picture.name}: at most {best} times the plain server's")
    return misses


def measure(setup: Setup, device: str, rounds: int, parts: Sequence[str]) -> dict[str, object]:
    """Measure all servers in each round, and return the results."""
    measured: Measured = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        if setup.checkpoint is None:
            setup = replace(setup, checkpoint=folder / "random.safetensors")
            write(folder / "random.safetensors", stored_shapes())
        checkout = Checkout(ROOT, folder, Path(sys.executable))
        for _ in range(rounds):
            for name in SERVERS:
                with start_server(name, setup, device, checkout) as address:
                    measure_round(address, name, setup, parts, measured)
    ratios = summarize(measured)
    return {
        "misses": find_misses(setup, ratios), "relative to one by one": ratios, "rounds": measured,
        "settings": dict(setup.settings), "machine": machine(),
    }  # fmt: skip


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", nargs="?", type=Path, const=Path(), metavar="CHECKPOINT", help="full size")
    parser.add_argument("--small", action="store_true", help="a short load, to see that this script works")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, help="JSON file to write; by default in benchmarks/results/")
    options = parser.parse_args()
    if options.full is not None and options.device == "cpu":
        parser.error("--full takes days on a CPU; --small runs the same code there")
    setup = SMALL if options.small else CPU
    if options.full is not None:
        setup = replace(FULL, checkpoint=options.full if options.full.name else None)
    result = measure(setup, options.device, options.rounds, options.only)
    print(json.dumps({key: result[key] for key in ("misses", "relative to one by one")}, indent=1))
    device = options.device.partition(":")[0]
    output = options.out or RESULTS / f"batching-{'small-' if options.small else ''}{device}.json"
    output.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(bool(result["misses"]))


if __name__ == "__main__":
    main()
