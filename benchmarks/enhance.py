"""Claim: Enhance keeps the composition, less with each magnitude, and draws finer than an enlargement is.

One picture of 832x1216 from the demo model, enhanced 1.5 times at every magnitude. Told are the likeness of each
result, made as small as the source again, to the source (SSIM, Wang et al. 2004, on luma), and its share of fine
structure beside the Lanczos enlargement's. The sheet in docs/ shows source, enlargement and results.
Run: python -m benchmarks.enhance [--model FILE] [--seed 3].
"""

import argparse
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from scipy import ndimage

from benchmarks.machine import machine
from demo.checkpoint import DEMO
from demo.model import as_served
from pipelines.job import Enhance, Guidance, Job, Prompts, RgbImage, second_pass
from pipelines.pipeline import Pipeline
from pipelines.types import Pixels
from pipelines.upscale.upscaler import resize_lanczos
from pipelines.weights.load import load_weights
from server.request.tasks import MAGNITUDES

HERE = Path(__file__).parent
SMALL, LARGE = (832, 1216), (1248, 1824)
PROMPT = (
    "1girl, solo, red hair, long hair, blue eyes, smile, white background, upper body, "
    "best quality, amazing quality, very aesthetic, absurdres"
)
UNDESIRED = "lowres, jpeg artifacts, worst quality, watermark, blurry, very displeasing"
Plane = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def luma(pixels: Pixels) -> Plane:
    """(height, width), 0 to 255."""
    return np.asarray(Image.fromarray(pixels).convert("L"), np.float64)


def smooth(plane: Plane, sigma: float) -> Plane:
    """A Gaussian blur."""
    return cast("Plane", cast("Any", ndimage).gaussian_filter(plane, sigma))


def likeness(one: Plane, other: Plane) -> float:
    """The mean structural similarity of two pictures of 0 to 255, with the paper's window and constants."""
    means = smooth(one, 1.5), smooth(other, 1.5)
    spreads = tuple(smooth(a * a, 1.5) - m * m for a, m in zip((one, other), means, strict=True))
    shared = smooth(one * other, 1.5) - means[0] * means[1]
    first, second = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * means[0] * means[1] + first) / (means[0] ** 2 + means[1] ** 2 + first)
    return float((luminance * (2 * shared + second) / (spreads[0] + spreads[1] + second)).mean())


def fineness(plane: Plane) -> float:
    """The energy of what a blur of a pixel takes away."""
    return float(((plane - smooth(plane, 1.0)) ** 2).mean())


def job(seed: int) -> Job:
    """The picture before it is enhanced."""
    prompts = Prompts(PROMPT, UNDESIRED)
    return as_served(Job("demo", prompts, *SMALL, 28, "k_euler", "native", Guidance(5.0), (seed,)))


def main() -> None:
    """Draw, enhance, compare, and write the result and the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--seed", type=int, default=3)
    arguments = parser.parse_args()
    pipeline = Pipeline(load_weights(arguments.model))
    first = job(arguments.seed)
    drawn = pipeline.run(first)[0]
    enlarged = resize_lanczos(drawn, *LARGE)
    shown, found = [enlarged], dict[str, dict[str, float]]()
    for magnitude, (strength, noise) in MAGNITUDES.items():
        seeds = {"seed": arguments.seed + 1, "noise_seed": arguments.seed + 1}
        enhance = Enhance(*LARGE, strength, noise, **seeds)
        picture = RgbImage(*LARGE, enlarged.tobytes())
        result = pipeline.run(as_served(second_pass(first, enhance, 0, picture)))[0]
        shown.append(result)
        found[str(magnitude)] = {
            "likeness": round(likeness(luma(resize_lanczos(result, *SMALL)), luma(drawn)), 3),
            "fineness": round(fineness(luma(result)) / fineness(luma(enlarged)), 2),
        }
        print(magnitude, found[str(magnitude)], flush=True)
    told = {"sizes": [SMALL, LARGE], "magnitudes": found, "machine": machine()}
    (HERE / "results" / "enhance.json").write_text(json.dumps(told, indent=2) + "\n")
    sheet = np.concatenate(
        [resize_lanczos(picture, LARGE[0] // 3, LARGE[1] // 3) for picture in shown], axis=1
    )
    Image.fromarray(sheet).save(HERE.parent / "docs" / "enhance.webp", quality=85)


if __name__ == "__main__":
    main()
