"""Claim: previews add at most 3 % to the time of an image.

Generates the same images with and without previews on the demo model, alternating, and compares medians of the CPU time
of all threads, which other programs disturb less than wall-clock time (reported too); the pixels must be equal. As a
control, runs without previews are compared with each other in the same way. CPU only: the previews are encoded on the
cores that also generate, so a GPU loses less.
Run: python -m benchmarks.preview_cost [--rounds 11] [--threads 1].
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import numpy as np
import torch

from benchmarks.machine import machine
from demo.checkpoint import DEMO
from pipelines.job import Guidance, Job, Pass, Prompts
from pipelines.pipeline import Pipeline
from pipelines.runner import Runner
from pipelines.types import Pixels, Preview
from pipelines.weights.load import load_weights

RESULTS = Path(__file__).parent / "results"
PROMPTS = Prompts("1girl, solo, smile, red hair, blue background", "lowres")
JOB = Job("demo", PROMPTS, 12, "k_euler_ancestral", "native", Guidance(5.0), (Pass(256, 384, (1,)),))
JOBS = {
    "256x384": JOB,
    "512x768": replace(JOB, passes=(Pass(512, 768, (1,)),)),
    "two of 256x384": replace(JOB, passes=(Pass(256, 384, (1, 2)),)),
}


def run(
    runner: Runner, job: Job, previews: list[Preview] | None
) -> tuple[tuple[float, float], Sequence[Pixels]]:
    """Return the CPU and wall-clock seconds of a run and its images; previews are added to a list if there is one."""
    cpu, clock = process_time(), perf_counter()
    images = runner.run(job, None, None if previews is None else previews.append).images
    return (process_time() - cpu, perf_counter() - clock), images


def compare(runner: Runner, job: Job, rounds: int) -> dict[str, float]:
    """Measure runs with and without previews; a first round of each is not counted."""
    times: dict[str, list[tuple[float, float]]] = {"without": [], "with": [], "control": []}
    counts: list[int] = []
    for number in range(rounds + 1):
        # in turn, so that a machine that slows down does not count against one of them
        order = list(times) if number % 2 else list(reversed(times))
        images: dict[str, Sequence[Pixels]] = {}
        for kind in order:
            previews: list[Preview] | None = [] if kind == "with" else None
            seconds, images[kind] = run(runner, job, previews)
            if number:
                times[kind].append(seconds)
                counts += [] if previews is None else [len(previews)]
        assert all(map(np.array_equal, images["with"], images["without"]))
    cpu, clock = (
        {kind: median(values) for kind, values in zip(times, column, strict=True)}
        for column in zip(*(zip(*pairs, strict=True) for pairs in times.values()), strict=True)
    )
    return {
        "cpu_ratio": round(cpu["with"] / cpu["without"], 3),
        "cpu_control_ratio": round(cpu["control"] / cpu["without"], 3),
        "clock_ratio": round(clock["with"] / clock["without"], 3),
        "clock_control_ratio": round(clock["control"] / clock["without"], 3),
        "seconds": round(clock["without"], 2),
        "previews": median(counts),
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runner = Runner(Pipeline(load_weights(DEMO)))
    results: dict[str, dict[str, float]] = {}
    for name, job in JOBS.items():
        results[name] = compare(runner, job, options.rounds)
        print(f"{name:16} {results[name]}")
    setup = {"rounds": options.rounds, "threads": options.threads, "steps": JOB.steps}
    worst = max(figures["cpu_ratio"] for figures in results.values())
    print(f"highest ratio: {worst}")
    text = json.dumps({**setup, "worst_cpu_ratio": worst, "images": results, "machine": machine()}, indent=2)
    (RESULTS / "preview_cost.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
