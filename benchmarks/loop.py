"""Claim: sampling takes no longer than diffusers' pipeline with the same weights, and skipped guidance saves its share.

Both sides get the same prompt embeddings, steps, scale and size, and return clean latents; neither encodes text or
decodes. They alternate, in one process; ratios are medians of the rounds' own ratios, with the range that half of them
lie in. Two networks: the demo model's, and one of SDXL's blocks with about 300 million weights, random. For guidance:
the time with it in a part of the steps, and with scale 1, relative to that with it in all steps.
Run: python -m benchmarks.loop [--rounds 20] [--only small|middle]; on a quiet machine, a quarter of an hour.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.diffusers_pipeline import build_latents_run, build_pipeline
from benchmarks.gpu import time_rounds
from benchmarks.machine import machine
from benchmarks.random_weights import build_random_weights
from demo.architecture import demo_architecture
from pipelines.job import Guidance, Job, Pass, Prompts
from pipelines.pipeline import Pipeline
from pipelines.weights.architecture import Architecture
from pipelines.weights.load import Weights
from pipelines.weights.placement import count_elements

RESULTS = Path(__file__).parent / "results"
PROMPTS = Prompts("1girl, smile", "lowres")


def middle_architecture() -> Architecture:
    """Return the demo's architecture with a UNet of SDXL's depths and about 300 million weights."""
    demo = demo_architecture()
    unet = dict(demo.unet) | {
        "block_out_channels": [112, 224, 448],
        "layers_per_block": 2,
        "attention_head_dim": [7, 14, 28],
        "transformer_layers_per_block": [1, 2, 10],
    }
    return replace(demo, unet=unet)


@dataclass(frozen=True, slots=True)
class Size:
    """One network at one image size."""

    architecture: Architecture
    side: int
    steps: int
    goal: float


SIZES = {
    "small": Size(demo_architecture(), 256, 8, 0.97),
    "middle": Size(middle_architecture(), 256, 4, 1.0),
}


def build_job(size: Size, scale: float = 5.0, skipped: float | None = None) -> Job:
    """Return a job; with `skipped` guidance is used only above that sigma."""
    guidance = Guidance(scale) if skipped is None else Guidance(scale, skip_below=skipped)
    return Job("m", PROMPTS, size.steps, "k_euler", "native", guidance, (Pass(size.side, size.side, (1,)),))


def build_own_run(pipeline: Pipeline, job: Job) -> Callable[[], list[Tensor]]:
    """Return a function that generates latents with the pipeline; prompts are in its cache after the first call."""
    return lambda: pipeline.generate_latents(job)


def measure(size: Size, rounds: int) -> dict[str, object]:
    """Return the ratios of one network."""
    weights = build_random_weights(size.architecture, torch.device("cpu"), torch.float32)
    pipeline = Pipeline(weights)
    last = 0.999 * pipeline.begin_pass(build_job(size)).plan.sigmas[size.steps // 2 - 1]
    runs = {
        "diffusers": build_latents_run(build_pipeline(weights), weights, (size.side, size.side), size.steps),
        "naiad": build_own_run(pipeline, build_job(size)),
        "guidance in half the steps": build_own_run(pipeline, build_job(size, skipped=last)),
        "scale 1": build_own_run(pipeline, build_job(size, 1.0)),
    }
    seconds = time_warm_rounds(weights, runs, rounds)
    own = seconds["naiad"]
    return {
        **describe(size, weights),
        "goal": size.goal,
        "ratio_to_diffusers": describe_ratio(own, seconds["diffusers"]),
        "guidance_in_half_the_steps": describe_ratio(seconds["guidance in half the steps"], own),
        "scale_1": describe_ratio(seconds["scale 1"], own),
    }


def time_warm_rounds(
    weights: Weights, runs: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of each run in each round, without the first call of each, which warms it up."""
    timed = time_rounds(weights.device, runs, rounds)
    return {name: each for name, (_first, *each) in timed.items()}


def describe(size: Size, weights: Weights) -> dict[str, object]:
    """Return what the results say of a network and its images."""
    return {
        "unet_million_weights": round(count_elements(cast("Any", weights.unet).module) / 1e6, 1),
        "picture": f"{size.side}x{size.side}, {size.steps} steps, k_euler, CFG",
    }


def describe_ratio(first: list[float], second: list[float]) -> dict[str, float]:
    """Return the median of the rounds' ratios, and the range that half of them lie in."""
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    low, _, high = quantiles(ratios, n=4)
    return {"median": round(median(ratios), 3), "quarter": round(low, 3), "three_quarters": round(high, 3)}


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", choices=SIZES)
    arguments = parser.parse_args()
    file = RESULTS / "loop.json"
    kept = json.loads(file.read_text())["networks"] if file.exists() else {}
    for name in [arguments.only] if arguments.only else SIZES:
        kept[name] = measure(SIZES[name], arguments.rounds)
        print(name, json.dumps(kept[name], indent=1))
    file.write_text(
        json.dumps({"rounds": arguments.rounds, "networks": kept, "machine": machine()}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
