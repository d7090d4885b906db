"""Claim: Enhance keeps the composition, less with each magnitude, and adds finer detail than Lanczos upscaling.

One 832x1216 image of the demo model, enhanced 1.5 times at every magnitude. Likeness: SSIM (Wang et al. 2004, on luma)
of the first image and the result downscaled to its size. Fineness: the energy of fine detail over that of the Lanczos
upscale. The sheet in docs/ shows the upscale, then the results.
Run: python -m benchmarks.enhance [--model FILE] [--seed 3].
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from scipy import ndimage

from benchmarks.machine import machine
from demo.checkpoint import DEMO
from demo.model import as_served
from pipelines.job import Guidance, Job, Pass, PreviousPass, Prompts
from pipelines.pipeline import Pipeline
from pipelines.runner import Runner
from pipelines.types import Pixels
from pipelines.upscale.upscaler import resize_lanczos
from pipelines.weights.load import load_weights
from server.request.passes import MAGNITUDES

HERE = Path(__file__).parent
SMALL, LARGE = (832, 1216), (1248, 1824)
PROMPT = (
    "1girl, solo, red hair, long hair, blue eyes, smile, white background, upper body, "
    "best quality, amazing quality, very aesthetic, absurdres"
)
NEGATIVE_PROMPT = "lowres, jpeg artifacts, worst quality, watermark, blurry, very displeasing"
Plane = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def to_luma(pixels: Pixels) -> Plane:
    """Convert RGB to luma (height, width), 0 to 255."""
    return np.asarray(Image.fromarray(pixels).convert("L"), np.float64)


def blur(plane: Plane, sigma: float) -> Plane:
    """Apply a Gaussian blur."""
    return cast("Plane", cast("Any", ndimage).gaussian_filter(plane, sigma))


def compute_ssim(one: Plane, other: Plane) -> float:
    """Return the mean structural similarity of two planes of 0 to 255, with the paper's window and constants."""
    means = blur(one, 1.5), blur(other, 1.5)
    variances = tuple(blur(a * a, 1.5) - m * m for a, m in zip((one, other), means, strict=True))
    covariance = blur(one * other, 1.5) - means[0] * means[1]
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * means[0] * means[1] + c1) / (means[0] ** 2 + means[1] ** 2 + c1)
    return float((luminance * (2 * covariance + c2) / (variances[0] + variances[1] + c2)).mean())


def measure_fine_detail(plane: Plane) -> float:
    """Return the energy that a blur of one pixel removes."""
    return float(((plane - blur(plane, 1.0)) ** 2).mean())


def make_job(seed: int) -> Job:
    """Return the job of the first pass."""
    passes = (as_served(Pass(*SMALL, (seed,))),)
    return Job("demo", Prompts(PROMPT, NEGATIVE_PROMPT), 28, "k_euler", "native", Guidance(5.0), passes)


def main() -> None:
    """Generate, enhance, compare, and write the results and the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--seed", type=int, default=3)
    arguments = parser.parse_args()
    runner = Runner(Pipeline(load_weights(arguments.model)))
    job = make_job(arguments.seed)
    original = runner.run(job).images[0]
    upscaled = resize_lanczos(original, *LARGE)
    images, magnitudes = [upscaled], dict[str, dict[str, float]]()
    for magnitude, (strength, noise) in MAGNITUDES.items():
        seed = arguments.seed + 1
        second = as_served(Pass(*LARGE, (seed,), PreviousPass(), strength, noise, seed))
        result = runner.run(replace(job, passes=(*job.passes, second))).images[0]
        images.append(result)
        magnitudes[str(magnitude)] = {
            "likeness": round(compute_ssim(to_luma(resize_lanczos(result, *SMALL)), to_luma(original)), 3),
            "fineness": round(
                measure_fine_detail(to_luma(result)) / measure_fine_detail(to_luma(upscaled)), 2
            ),
        }
        print(magnitude, magnitudes[str(magnitude)], flush=True)
    results = {"sizes": [SMALL, LARGE], "magnitudes": magnitudes, "machine": machine()}
    (HERE / "results" / "enhance.json").write_text(json.dumps(results, indent=2) + "\n")
    thumbnails = [resize_lanczos(image, LARGE[0] // 3, LARGE[1] // 3) for image in images]
    sheet = np.concatenate(thumbnails, axis=1)
    Image.fromarray(sheet).save(HERE.parent / "docs" / "enhance.webp", quality=85)


if __name__ == "__main__":
    main()
