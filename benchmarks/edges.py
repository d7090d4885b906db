"""Claim: PNG, metadata, signature and ZIP of an image cost at most a fifth of Pillow's default PNG save alone.

Compares the steps from a pipeline's pixels to the client's ZIP with `Image.save` of the same RGBA pixels, without text.
The two alternate. The ratio is of the medians of the CPU time of all threads, which other programs disturb less than
wall-clock time (reported too). Images of 832 x 1216: shapes with soft edges and no grain, which Pillow compresses most
easily; the same with a grain of one level, as decoders leave; noise; and real images if there are any next to the
checkout, resized, but none upscaled more than 2 times. A blank image is measured too but is not part of the claim: two
thirds of our cost for it is the signature, which depends on the size alone.
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
from pipelines.job import Guidance, Job, Pass, Prompts
from pipelines.types import Pixels
from server.api.responses import zip_images
from server.engine.ticket import Result
from server.picture.signature import SigningKey
from server.picture.writer import MetadataPolicy, write_job_picture
from server.request.resolve import ResolvedRequest

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
    steps=28,
    sampler="k_euler",
    schedule="native",
    guidance=Guidance(5.0),
    passes=(Pass(WIDTH, HEIGHT, (7,)),),
)
SIGMAS = tuple(14.6 * (1 - step / 28) for step in range(29))
POLICY = MetadataPolicy("00C0FFEE", SigningKey(Ed25519PrivateKey.generate()), "full", "exact")


def make_images() -> Iterator[tuple[str, Pixels]]:
    """Yield the name and the pixels of every image."""
    shapes, random = draw_shapes(), np.random.default_rng(0)
    yield "drawn", shapes
    grain = random.integers(-1, 2, shapes.shape)
    yield "grained", np.clip(shapes + grain, 0, 255).astype(np.uint8)
    yield "noisy", random.integers(0, 256, shapes.shape, np.uint8)
    for path in sorted(SAMPLES.glob("*.png")):
        with Image.open(path) as image:
            if 2 * image.width >= WIDTH and 2 * image.height >= HEIGHT:
                resized = image.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
                yield f"genuine {path.stem}", np.array(resized)
    yield "blank", np.full_like(shapes, 255)


def draw_shapes() -> Pixels:
    """Return an image of two hundred outlined ellipses with soft edges on a gradient."""
    image = Image.linear_gradient("L").resize((WIDTH, HEIGHT)).convert("RGB")
    pen, random = ImageDraw.Draw(image), np.random.default_rng(3)
    for _ in range(200):
        left, top = random.integers(-100, [WIDTH, HEIGHT]).tolist()
        width, height = random.integers(10, 400, 2).tolist()
        color = tuple(random.integers(0, 256, 3).tolist())
        pen.ellipse((left, top, left + width, top + height), color, "black", 3)
    return np.array(image.filter(ImageFilter.GaussianBlur(1.5)))


def make_zip(rgb: Pixels) -> bytes:
    """Return the ZIP that a client gets for one image."""
    result = Result([rgb], SIGMAS, queue_seconds=0.0, run_seconds=4.25)
    return zip_images([write_job_picture(POLICY, ResolvedRequest(JOB, "png", {}, ()), result, 0)])


def read_zip(archive: bytes) -> Image.Image:
    """Return the image in a ZIP, without its text."""
    with ZipFile(BytesIO(archive)) as file, Image.open(BytesIO(file.read("image_0.png"))) as image:
        return Image.fromarray(np.array(image))


def save_with_pillow(image: Image.Image) -> bytes:
    """Return the PNG that Pillow writes by default."""
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def measure_seconds(run: Callable[[], bytes]) -> tuple[float, float]:
    """Return the CPU and the wall-clock time of a call, in seconds."""
    cpu, clock = process_time(), perf_counter()
    run()
    return process_time() - cpu, perf_counter() - clock


def compare(rgb: Pixels, rounds: int) -> dict[str, float]:
    """Measure both sides on one image; a first round of each is not counted."""
    archive = make_zip(rgb)
    image = read_zip(archive)
    pillow_png = save_with_pillow(image)
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(measure_seconds(lambda: make_zip(rgb)))
        theirs.append(measure_seconds(lambda: save_with_pillow(image)))
    (cpu, clock), (their_cpu, their_clock) = (
        tuple(median(times) for times in zip(*side, strict=True)) for side in (ours, theirs)
    )
    return {
        "cpu_ratio": round(cpu / their_cpu, 3),
        "clock_ratio": round(clock / their_clock, 3),
        "size_ratio": round(len(archive) / len(pillow_png), 2),
        "our_cpu_milliseconds": round(1000 * cpu, 1),
        "pillow_cpu_milliseconds": round(1000 * their_cpu, 1),
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    results: dict[str, dict[str, float]] = {}
    for name, rgb in make_images():
        results[name] = compare(rgb, rounds)
        print(f"{name:30} {results[name]}")
    worst = max(figures["cpu_ratio"] for name, figures in results.items() if name != "blank")
    print(f"highest ratio, without the blank image: {worst}")
    environment = machine() | {name: version(name) for name in ("numpy", "pillow", "isal", "cryptography")}
    result = {"rounds": rounds, "worst_cpu_ratio": worst, "pictures": results, "machine": environment}
    (RESULTS / "edges.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
