"""Claim: none, but what `speed.step_cache` saves of the UNet's arithmetic, and how much it changes pictures.

Counted on the meta device: the floating-point operations of a pass over a picture's two rows with prompts of a chunk,
how many of them a picture in 28 steps saves, and the bytes that are kept for it. Pictures of the demo model with each
interval are compared with those without the cache, at equal seeds. So are pictures of fewer steps, all of them full,
which take SDXL no fewer operations; samplers with noise draw other noise in these.
Run: python -m benchmarks.step_cache [--pictures 12]; some minutes on a CPU.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.dispatch import META
from benchmarks.dry_run import build_empty_weights
from benchmarks.machine import machine
from demo.captions import random_scene
from demo.checkpoint import DEMO
from demo.train_unet import build_job
from pipelines.job import Job
from pipelines.pipeline import Pipeline
from pipelines.sampling.step_cache import is_full_by_number
from pipelines.types import Pixels, Size
from pipelines.unet.attention import Context
from pipelines.weights.architecture import Architecture, sdxl
from pipelines.weights.load import Weights, load_weights

RESULT = Path(__file__).parent / "results" / "step_cache.json"
INTERVALS = 2, 3, 5
STEPS = 28
SIZE: Size = (256, 256)
SDXL_SIZE: Size = (832, 1216)
TOKENS = 77
SAMPLERS = "k_euler", "k_euler_ancestral", "k_dpmpp_2m", "k_heun"
DIFFERENT = 20.0
"""PSNR in dB below which two pictures differ at first sight."""


def count_full_steps(interval: int) -> int:
    """Return how many steps of a picture are full."""
    return sum(is_full_by_number(step, STEPS, interval) for step in range(1, STEPS + 1))


@torch.inference_mode()
def count_operations(architecture: Architecture, size: Size) -> dict[str, Any]:
    """Return the operations of a full and of a shallow pass over two rows, and the bytes that are kept between them."""
    unet: Any = build_empty_weights(architecture).unet
    shape, (width, height) = unet.module.shape, size
    half = {"dtype": torch.float16, "device": META}
    inputs = (
        torch.empty(2, 4, height // 8, width // 8, **half),
        torch.empty(2, shape.embedding, **half),
        Context(torch.empty(2, TOKENS, unet.module.width, **half)),
    )
    with FlopCounterMode(display=False) as counter:
        _, deep = unet.run_full(*inputs)
    full = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        unet.run_shallow(*inputs, deep)
    shallow = counter.get_total_flops()
    return {
        "size": "{}x{}".format(*size),
        "full_teraflop": round(full / 1e12, 4),
        "shallow_teraflop": round(shallow / 1e12, 4),
        "shallow_share": round(shallow / full, 4),
        "kept_mib": round(deep.nbytes / 2**20, 2),
    }


def summarize_savings(share: float) -> dict[int, dict[str, float]]:
    """Return for each interval what a picture saves if a shallow pass has this share of a full one's operations."""
    rows: dict[int, dict[str, float]] = {}
    for interval in INTERVALS:
        full = count_full_steps(interval)
        cost = (full + (STEPS - full) * share) / STEPS
        rows[interval] = {
            "full_steps": full,
            "saved": round(1 - cost, 3),
            "times_fewer_operations": round(1 / cost, 2),
            "steps_at_equal_cost": ceil(cost * STEPS),
        }
    return rows


def build_jobs(count: int, sampler: str) -> list[Job]:
    """Return jobs for random scenes, the same ones every time."""
    rng = np.random.default_rng(17)
    prompts = [", ".join(random_scene(rng).tags()) for _ in range(count)]
    jobs = [build_job(prompt, SIZE, seed, STEPS) for seed, prompt in enumerate(prompts, 1)]
    return [replace(job, sampler=sampler) for job in jobs]


def draw(weights: Weights, jobs: Sequence[Job], interval: int = 1, steps: int = STEPS) -> list[Pixels]:
    """Return the first picture of each job."""
    pipeline = Pipeline(weights, step_cache=interval)
    return [pipeline.run(replace(job, steps=steps)).images[0] for job in jobs]


def compute_psnr(first: Pixels, second: Pixels) -> float:
    """Return the peak signal-to-noise ratio of two pictures in dB, at most 100."""
    error = float(np.square(first.astype(float) - second).mean())
    return min(100.0, 10 * float(np.log10(255**2 / max(error, 1e-9))))


def compare(pictures: Sequence[Pixels], plain: Sequence[Pixels]) -> dict[str, float]:
    """Return the PSNR of pictures against those without the cache."""
    values = [compute_psnr(*pair) for pair in zip(pictures, plain, strict=True)]
    return {
        "median_psnr": round(median(values), 2),
        "mean_psnr": round(mean(values), 2),
        "least_psnr": round(min(values), 2),
        "different": round(mean(value < DIFFERENT for value in values), 3),
    }


def measure_pictures(
    count: int, savings: Mapping[int, Mapping[str, float]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield for each sampler how its pictures change with each interval, and with fewer steps at the same cost."""
    weights = load_weights(DEMO)
    for sampler in SAMPLERS:
        jobs, row = build_jobs(count, sampler), dict[str, Any]()
        plain = draw(weights, jobs)
        for interval in INTERVALS:
            steps = int(savings[interval]["steps_at_equal_cost"])
            row[str(interval)] = {
                "cached": compare(draw(weights, jobs, interval), plain),
                f"{steps} full steps": compare(draw(weights, jobs, steps=steps), plain),
            }
            print(sampler, interval, row[str(interval)], flush=True)
        yield sampler, row


def main() -> None:
    """Count, draw, compare, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=12)
    count = parser.parse_args().pictures
    full_size = count_operations(sdxl(), SDXL_SIZE)
    demo = count_operations(load_weights(DEMO).architecture, SIZE)
    savings = summarize_savings(full_size["shallow_share"])
    print(json.dumps({"sdxl": full_size, "demo": demo, "savings": savings}, indent=2), flush=True)
    pictures = dict(measure_pictures(count, savings))
    results = {
        "steps": STEPS,
        "passes": {"sdxl": full_size, "demo": demo},
        "sdxl_picture": savings,
        "demo_size": "{}x{}".format(*SIZE),
        "pictures": count,
        "against_no_cache": pictures,
        "machine": machine(),
    }
    RESULT.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
