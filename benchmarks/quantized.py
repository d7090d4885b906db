"""Claim: int8 weights of the UNet change its output less than bfloat16 does, and float8 weights do more.

Draws pictures of the demo model with `speed.weights` = int8 and float8, and as a control in half precision, with the
seeds of pictures in full (float32). Measured are the relative RMS difference of the UNet's output for the same inputs
in every step, and the largest difference and the PSNR of the pictures, whose differences add up over the steps.
On a CPU, whose products of 8-bit matrices have the same values as a GPU's but for the order of sums; times are not
measured. Run: python -m benchmarks.quantized [--steps 28] [--size 256].
"""

import argparse
import json
from dataclasses import dataclass, replace
from math import log10
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch

from benchmarks.machine import machine
from demo.checkpoint import DEMO
from pipelines.job import Guidance, Job, Pass, Prompts
from pipelines.pipeline import Pipeline
from pipelines.speed import SpeedChoices
from pipelines.types import Pixels
from pipelines.unet.attention import Context
from pipelines.weights.load import Weights, load_weights

RESULTS = Path(__file__).parent / "results"
PROMPTS = (
    "1girl, solo, smile, red hair, blue background",
    "red heart",
    "2girls, green shirt, white background",
    "blue star, black background",
)
OPTIONS: dict[str, dict[str, Any]] = {
    "float16": {"dtype": torch.float16},
    "bfloat16": {"dtype": torch.bfloat16},
    "int8": {"speed": SpeedChoices(weights="int8")},
    "float8": {"speed": SpeedChoices(weights="float8")},
}


@dataclass
class RecordingUNet:
    """A UNet that keeps the inputs and the output of every pass."""

    unet: Any
    passes: list[tuple[tuple[Any, ...], torch.Tensor]]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unet, name)

    def __call__(self, *inputs: Any) -> torch.Tensor:
        output = self.unet(*inputs)
        self.passes.append((inputs, output))
        return output


def make_jobs(size: int, steps: int) -> list[Job]:
    """Return a job for each prompt."""
    return [
        Job("demo", Prompts(text, "lowres"), steps, "k_euler", "native", Guidance(5.0), (Pass(size, size, (seed,)),))
        for seed, text in enumerate(PROMPTS, 1)
    ]  # fmt: skip


def compare_passes(weights: Weights, passes: list[tuple[tuple[Any, ...], torch.Tensor]]) -> list[float]:
    """Return the relative RMS difference of the UNet's output for each recorded pass."""
    found: list[float] = []
    for (sample, embedding, context, *rest), expected in passes:
        inputs = sample.to(weights.dtype), embedding.to(weights.dtype)
        converted = Context(context.keys_values.to(weights.dtype), context.images)
        with torch.inference_mode():
            output = weights.unet(*inputs, converted, *rest).float()
        found.append(float((output - expected).square().mean().sqrt() / expected.square().mean().sqrt()))
    return found


def compare_pictures(picture: Pixels, expected: Pixels) -> tuple[float, int]:
    """Return the PSNR of a picture in dB and its largest difference, of 255."""
    difference = picture.astype(float) - expected
    error = max(float((difference**2).mean()), 1e-12)
    return 10 * log10(255**2 / error), int(np.abs(difference).max())


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    jobs = make_jobs(options.size, options.steps)
    full = load_weights(DEMO, dtype=torch.float32)
    recorder = RecordingUNet(full.unet, [])
    expected = [Pipeline(replace(full, unet=recorder)).run(job).images[0] for job in jobs]
    results: dict[str, dict[str, float]] = {}
    for name, arguments in OPTIONS.items():
        chosen: dict[str, Any] = {"dtype": torch.float32} | arguments
        weights = load_weights(DEMO, vae_dtype=torch.float32, **chosen)
        pipeline = Pipeline(weights)
        pictures = [
            compare_pictures(pipeline.run(job).images[0], each)
            for job, each in zip(jobs, expected, strict=True)
        ]
        passes = compare_passes(weights, recorder.passes)
        results[name] = {
            "unet_difference": round(mean(passes), 5),
            "unet_difference_most": round(max(passes), 5),
            "psnr": round(median(psnr for psnr, _ in pictures), 1),
            "psnr_least": round(min(psnr for psnr, _ in pictures), 1),
            "largest_difference": max(most for _, most in pictures),
        }
        print(f"{name:9} {results[name]}", flush=True)
    setup = {"steps": options.steps, "size": options.size, "pictures": len(jobs)}
    text = json.dumps({**setup, "options": results, "machine": machine()}, indent=2)
    (RESULTS / "quantized.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
