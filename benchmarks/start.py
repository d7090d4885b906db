"""Claim: a full-size model is loaded in at most 1.3 times the time of reading its file, and with 1 GB of extra memory.

Writes 6.94 GB of random float16 weights, or takes `--file`. Each round reads the file, loads it in its own dtype, loads
it as a CPU does (in bfloat16), all with the file dropped from the system's cache before and then from the cache; and
starts `naiad serve` until it is ready, with `--picture` until its first picture, which takes a CPU without bfloat16
many minutes. The memory is anonymous, at its peak, above that of the tensors that are not views of the file.
Run: python -m benchmarks.start [--rounds 3]. Absolute seconds depend on CPU and disk; the ratios are the claim.
"""

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any, cast

import httpx
import torch

from benchmarks.checkout import find_free_port
from benchmarks.fullsize import anonymous_memory, measure_time, stored_shapes, write
from benchmarks.machine import machine
from pipelines.weights.load import Weights, load_weights
from pipelines.weights.model_plan import plan_model

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
BLOCK = 1 << 24
INTERVAL = 0.02
START_SECONDS = 600
LOADS = {"same_dtype": torch.float16, "bfloat16": torch.bfloat16}
TARGET, MEMORY_TARGET = 1.3, 1.0


def drop_from_cache(path: Path) -> None:
    """Drop a file from the system's cache, as far as no process has it mapped."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def read_file(path: Path) -> None:
    """Read a file from its beginning to its end."""
    buffer = bytearray(BLOCK)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


@contextmanager
def watch_memory() -> Iterator[list[float]]:
    """Append the anonymous memory of this process in GiB to a list until the block ends."""
    found, stop = [anonymous_memory()], Event()

    def watch() -> None:
        while not stop.wait(INTERVAL):
            found.append(anonymous_memory())

    thread = Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def measure_load(path: Path, device: str, dtype: torch.dtype) -> tuple[float, float]:
    """Load a file; return the seconds and the GiB of memory above the tensors' own."""
    gc.collect()
    with watch_memory() as memory:
        seconds, weights = measure_time(
            lambda: load_weights(path, device=device, dtype=dtype, vae_dtype=dtype)
        )
    is_mapped = device != "cpu" or dtype is torch.float16
    own = 0 if is_mapped else count_bytes(cast("Weights", weights))
    del weights
    gc.collect()  # networks are in cycles
    return seconds, max(memory) - memory[0] - own / 2**30


def count_bytes(weights: Weights) -> int:
    """Return the bytes of a model's weights."""
    networks = (weights.unet, weights.vae, *weights.text_encoders)
    return sum(tensor.nbytes for network in networks for tensor in cast("Any", network).module.parameters())


def measure_round(path: Path, device: str) -> dict[str, float]:
    """Read and load once from the disk and once from the system's cache, one after another."""
    result: dict[str, float] = {}
    works: dict[str, Callable[[], object]] = {
        name: partial(measure_load, path, device, dtype) for name, dtype in LOADS.items()
    }
    for state in ("cold", "warm"):
        for name, work in {"read": partial(read_file, path), **works}.items():
            if state == "cold":
                drop_from_cache(path)
            seconds, found = measure_time(work)
            if isinstance(found, tuple):
                seconds, result[f"{name}_{state}_gib"] = cast("tuple[float, float]", found)
            result[f"{name}_{state}"] = seconds
            print(f"{name}, {state}: {seconds:.2f} s", flush=True)
    return result


def measure_server(path: Path, device: str, folder: Path, draws: bool) -> dict[str, float]:
    """Start the server with the file out of the cache; return when it answers, is ready and has drawn a picture."""
    drop_from_cache(path)
    port, log = find_free_port(), folder / "server.log"
    command = [sys.executable, "-P", "-m", "server", "serve", path, "--device", device, "--port", port]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NAIAD_SIGNING_KEY": str(folder / "signing.pem")}
    start = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(map(str, command)), cwd=folder, env=environment, stdout=output, stderr=output
        )
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=START_SECONDS
        ) as client:
            result = {"answers": wait_for(client, "/live", process) - start}
            result["ready"] = wait_for(client, "/ready", process) - start
            if draws:
                parameters = {"width": 64, "height": 64, "steps": 1, "seed": 1}
                body = {"input": "1girl", "model": "nai-diffusion-3", "parameters": parameters}
                client.post("/ai/generate-image", json=body).raise_for_status()
                result["first_picture"] = time.perf_counter() - start
    finally:
        process.terminate()
        process.wait(60)
    line = re.search(r"ready after [\d.]+ s: (.+)", log.read_text())
    parts = (part.split() for part in line[1].split(", ")) if line else ()
    return result | {f"part_{part}": float(seconds) for part, seconds in parts}


def wait_for(client: httpx.Client, path: str, process: subprocess.Popen[bytes]) -> float:
    """Return the time at which a path first gives 200."""
    while process.poll() is None:
        try:
            if client.get(path).status_code == 200:
                return time.perf_counter()
        except httpx.TransportError:
            pass
        time.sleep(INTERVAL)
    raise RuntimeError(f"the server ended with status {process.returncode}")


def summarize(rounds: list[dict[str, float]]) -> dict[str, object]:
    """Return the medians of all figures, and those of the ratios within each round."""
    result: dict[str, object] = {key: round(median(each[key] for each in rounds), 2) for key in rounds[0]}
    for name in LOADS:
        for state in ("cold", "warm"):
            ratios = [each[f"{name}_{state}"] / each[f"read_{state}"] for each in rounds]
            result[f"{name}_{state}_ratio"] = round(median(ratios), 2)
            result[f"{name}_{state}_ratios"] = [round(ratio, 2) for ratio in ratios]
    return result


def measure(path: Path, device: str, folder: Path, rounds: int, draws: bool) -> dict[str, object]:
    """Measure everything about one file."""
    plan_model(path)  # imports what loading needs
    found: list[dict[str, float]] = []
    for number in range(rounds):
        found.append(measure_round(path, device) | measure_server(path, device, folder, draws))
        figures = {key: round(value, 2) for key, value in found[-1].items()}
        print(f"round {number + 1}: {json.dumps(figures)}", flush=True)
    return summarize(found)


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--file", type=Path, help="float16 weights of full size")
    parser.add_argument("--picture", action="store_true", help="also draw a picture")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="which to load onto")
    parser.add_argument("--out", type=Path, default=RESULTS / "start.json", help="JSON file to write")
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        path = None if options.file is None else options.file.resolve()
        if path is None:
            path = folder / "fullsize.safetensors"
            write(path, stored_shapes())
        result: dict[str, object] = {
            "gigabytes": round(path.stat().st_size / 1e9, 2),
            "device": options.device,
            "rounds": options.rounds,
        }
        result |= measure(path, options.device, folder, options.rounds, options.picture)
    ratios = [cast("float", result[f"{name}_cold_ratio"]) for name in LOADS]
    memory = [cast("float", result[f"{name}_{state}_gib"]) for name in LOADS for state in ("cold", "warm")]
    result["claim_holds"] = max(ratios) <= TARGET and max(memory) <= MEMORY_TARGET
    result["load_average"] = round(os.getloadavg()[2], 1)
    result["machine"] = machine()
    for key, value in result.items():
        print(f"{key:40} {value}")
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
