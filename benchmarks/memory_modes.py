"""Claim: the memory plan for a card fits into such a card, and its images take no longer than the copies explain.

For 24, 16, 12, 8 and 6 GB, a checkpoint is loaded with the plan for a card of that size and draws an image, while
torch's allocator may take no more than that card has free. The table has the plan, the peak of the allocator, and the
seconds of loading and of an image. Run by gpu.sh, or: python -m benchmarks.memory_modes CHECKPOINT [--out FILE]. Only a
GPU has an allocator to cap; on a CPU the same code runs without memory figures, with all weights where they are mapped.
"""

import argparse
import gc
import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.gpu import FULL, SMALL, Setup, time_call
from benchmarks.machine import machine
from pipelines.device import release_memory
from pipelines.pass_limits import find_pass_limits
from pipelines.pipeline import Pipeline
from pipelines.weights.load import load_weights
from pipelines.weights.placement import CARD_SHARE

RESULTS = Path(__file__).parent / "results"
CARDS = (24, 16, 12, 8, 6)
"""Gigabytes."""
ROUNDS = 3


@contextmanager
def cap_memory(device: torch.device, gigabytes: int) -> Generator[None]:
    """Let torch's allocator take no more of a GPU than a smaller card has free."""
    if device.type != "cuda":
        yield
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, CARD_SHARE * gigabytes * 1e9 / total))
    torch.cuda.reset_peak_memory_stats(device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def measure(path: Path, device: torch.device, setup: Setup, gigabytes: int) -> dict[str, Any]:
    """Load and draw with the plan for one card."""
    job = setup.build_job()
    with cap_memory(device, gigabytes):
        found: list[Any] = []
        load = time_call(
            device, lambda: found.append(load_weights(path, device=device.type, gigabytes=gigabytes))
        )
        weights = found.pop()
        pipeline = Pipeline(weights, pass_limits=find_pass_limits(weights))
        first, *others = (time_call(device, lambda: pipeline.run(job)) for _ in range(1 + ROUNDS))
        figures = {
            "card_gigabytes": gigabytes,
            "plan": str(weights.memory),
            "load_seconds": round(load, 2),
            "first_seconds": round(first, 2),
            "seconds": round(median(others), 3),
        }
        if device.type == "cuda":
            reserved = torch.cuda.max_memory_reserved(device)
            figures["peak_gigabytes"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 2)
            figures["reserved_gigabytes"] = round(reserved / 1e9, 2)
        pipeline.free_memory()
    return figures


def measure_all(path: Path, device: torch.device, setup: Setup) -> dict[str, object]:
    """Measure every card; one whose plan does not fit has the reason instead."""
    rows: list[dict[str, Any]] = []
    for card in CARDS:
        try:
            rows.append(measure(path, device, setup, card))
        except torch.OutOfMemoryError:
            rows.append({"card_gigabytes": card, "failure": "out of memory"})
        gc.collect()
        release_memory(device)
        print(json.dumps(rows[-1]), flush=True)
    return {"file": path.name, "picture": setup.picture, "rows": rows, "machine": machine()}


def main() -> None:
    """Measure, print, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--small", action="store_true", help="a small image of few steps")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result = measure_all(options.checkpoint, device, SMALL if options.small else FULL)
    name = f"memory_modes-{'small-' if options.small else ''}{device.type}.json"
    (options.out or RESULTS / name).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
