"""Claim: PNG, metadata, signature and ZIP of a picture cost at most a fifth of Pillow's default PNG save alone.

From the pixels a device drew to the ZIP a client gets, against `Image.save` of the very RGBA pixels that lie in that
ZIP, without any text. Both sides take turns; what is compared are the medians of the CPU time of all threads, which
other programs disturb less than the clock (also told). Pictures of 832 x 1216: shapes with soft edges and not a
trace of grain, which Pillow finds easiest; the same with a grain of one level, as decoders leave; noise; genuine
pictures when they lie beside the checkout, resized, but none enlarged more than twice. A blank page is measured too,
outside the claim: two thirds of our side are the signature, whose cost depends on size alone.
Run: python -m benchmarks.edges [--rounds 15].
"""

import argparse
import json
from collections.abc import Callable, Iterator
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from zipfile import ZipFile

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.machine import machine
from pipelines.job import Guidance, Job, Prompts
from pipelines.types import Pixels
from server.api.responses import zip_images
from server.engine.engine import Result
from server.picture.signature import SigningKey
from server.picture.writer import MetadataPolicy, write_job_picture

RESULTS = Path(__file__).parent / "results"
SAMPLES = Path(__file__).parents[2] / "shared" / "samples"
WIDTH, HEIGHT = 832, 1216
PROMPT = "1girl, solo, long hair, smile, looking at viewer, best quality, amazing quality, very aesthetic, absurdres"
NEGATIVE = (
    "lowres, {bad}, error, fewer, extra, missing, worst quality, jpeg artifacts, bad quality, watermark"
)
JOB = Job(
    model="nai-diffusion-3",
    prompts=Prompts(PROMPT, NEGATIVE),
    width=WIDTH,
    height=HEIGHT,
    steps=28,
    sampler="k_euler",
    schedule="native",
    guidance=Guidance(5.0),
    seeds=(7,),
)
LADDER = tuple(14.6 * (1 - step / 28) for step in range(29))
IMPRINT = MetadataPolicy("00C0FFEE", SigningKey(Ed25519PrivateKey.generate()), "full", "exact")


def pictures() -> Iterator[tuple[str, Pixels]]:
    """Every picture and its name."""
    drawn, random = shapes(), np.random.default_rng(0)
    yield "drawn", drawn
    grain = random.integers(-1, 2, drawn.shape)
    yield "grained", np.clip(drawn + grain, 0, 255).astype(np.uint8)
    yield "noisy", random.integers(0, 256, drawn.shape, np.uint8)
    for path in sorted(SAMPLES.glob("*.png")):
        with Image.open(path) as genuine:
            if 2 * genuine.width >= WIDTH and 2 * genuine.height >= HEIGHT:
                resized = genuine.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
                yield f"genuine {path.stem}", np.array(resized)
    yield "blank", np.full_like(drawn, 255)


def shapes() -> Pixels:
    """Two hundred outlined ellipses before a gradient, their edges soft."""
    picture = Image.linear_gradient("L").resize((WIDTH, HEIGHT)).convert("RGB")
    pen, random = ImageDraw.Draw(picture), np.random.default_rng(3)
    for _ in range(200):
        left, top = random.integers(-100, [WIDTH, HEIGHT]).tolist()
        width, height = random.integers(10, 400, 2).tolist()
        colour = tuple(random.integers(0, 256, 3).tolist())
        pen.ellipse((left, top, left + width, top + height), colour, "black", 3)
    return np.array(picture.filter(ImageFilter.GaussianBlur(1.5)))


def ours(rgb: Pixels) -> bytes:
    """The ZIP of a picture."""
    drawn = Result([rgb], LADDER, queue_seconds=0.0, run_seconds=4.25)
    return zip_images([write_job_picture(IMPRINT, JOB, drawn, 0, {}, "png")])


def within(archive: bytes) -> Image.Image:
    """The picture in a ZIP, with neither text nor file."""
    with ZipFile(BytesIO(archive)) as opened, Image.open(BytesIO(opened.read("image_0.png"))) as picture:
        return Image.fromarray(np.array(picture))


def saved(picture: Image.Image) -> bytes:
    """A picture as Pillow saves it when told nothing."""
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def timed(work: Callable[[], bytes]) -> tuple[float, float]:
    """Seconds of CPU, and of the clock."""
    cpu, clock = process_time(), perf_counter()
    work()
    return process_time() - cpu, perf_counter() - clock


def compared(rgb: Pixels, rounds: int) -> dict[str, float]:
    """Both sides of one picture; a first round of each is not counted."""
    archive = ours(rgb)
    picture = within(archive)
    theirs = saved(picture)
    left, right = [], []
    for _ in range(rounds):
        left.append(timed(lambda: ours(rgb)))
        right.append(timed(lambda: saved(picture)))
    (cpu, clock), (their_cpu, their_clock) = (
        tuple(median(times) for times in zip(*side, strict=True)) for side in (left, right)
    )
    return {
        "cpu_ratio": round(cpu / their_cpu, 3),
        "clock_ratio": round(clock / their_clock, 3),
        "size_ratio": round(len(archive) / len(theirs), 2),
        "our_cpu_milliseconds": round(1000 * cpu, 1),
        "pillow_cpu_milliseconds": round(1000 * their_cpu, 1),
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    kinds: dict[str, dict[str, float]] = {}
    for name, rgb in pictures():
        kinds[name] = compared(rgb, rounds)
        print(f"{name:30} {kinds[name]}")
    worst = max(figures["cpu_ratio"] for name, figures in kinds.items() if name != "blank")
    print(f"worst of what is drawn: {worst}")
    here = machine() | {name: version(name) for name in ("numpy", "pillow", "isal", "cryptography")}
    result = {"rounds": rounds, "worst_cpu_ratio": worst, "pictures": kinds, "machine": here}
    (RESULTS / "edges.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
