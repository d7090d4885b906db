"""Claim: an image takes at most twice what its floating-point operations need, and less than with diffusers.

In one run on one device, with the same random weights: half precision against float32; then naiad as it is and
compiled, diffusers as it is and as its documentation makes it fastest (channels last, fused projections,
torch.compile), in turns, medians over images with 28 Euler steps, CFG and VAE decode; then images a minute with 1, 4
and 8 of them in shared passes. The floor is the number of counted floating-point operations divided by the rate of a
large matrix product measured here. Run by gpu.sh, or: python -m benchmarks.gpu [--small]. Seconds are only valid on a
GPU.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.diffusers_pipeline import (
    build_latents_run,
    build_pipeline,
    compile_pipeline,
    encode_prompts,
)
from benchmarks.machine import machine
from benchmarks.random_weights import build_random_weights, copy_weights
from demo.architecture import demo_architecture
from pipelines.job import Guidance, Job, Pass, Prompts
from pipelines.pass_limits import find_pass_limits
from pipelines.pipeline import Pipeline
from pipelines.speed import SpeedChoices, choose_speed
from pipelines.unet.attention import Context
from pipelines.unet.graphs import UNetInputs
from pipelines.weights.architecture import Architecture, sdxl
from pipelines.weights.load import Weights

RESULTS = Path(__file__).parent / "results"
LARGEST_ERROR = 0.02
"""Relative difference of half precision from float32: 0.002 is usual, and 0.015 bfloat16's on small networks."""
AT_ONCE = (1, 4, 8)


@dataclass(frozen=True, slots=True)
class Setup:
    """Shapes of the benchmark: model, image size, steps, rounds, and side of the measured matrix product."""

    architecture: Architecture
    width: int
    height: int
    steps: int
    rounds: int
    matrix: int

    @property
    def picture(self) -> str:
        return f"{self.width}x{self.height}, {self.steps} steps, k_euler, CFG"

    def build_job(self, count: int = 1) -> Job:
        """Return a job for some images."""
        passes = (Pass(self.width, self.height, tuple(range(1, count + 1))),)
        prompts = Prompts("1girl, smile", "lowres")
        return Job("m", prompts, self.steps, "k_euler", "native", Guidance(5.0), passes)


FULL = Setup(sdxl(), 832, 1216, 28, 5, 8192)
SMALL = Setup(demo_architecture(), 128, 192, 4, 3, 1024)


def build_inputs(setup: Setup, weights: Weights) -> UNetInputs:
    """Return the inputs of a pass in the middle of a run."""
    texts = encode_prompts(weights)
    noise = torch.randn(2, 4, setup.height // 8, setup.width // 8, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([setup.height, setup.width, 0, 0, setup.height, setup.width], device=weights.device)
    times = torch.tensor([500.0], device=weights.device)
    embeddings = [weights.unet.embed(times, text.pooled, ids)[0] for text in texts]
    keys_values = torch.stack([weights.unet.project(text.context) for text in texts])
    sample = noise.to(weights.device, weights.dtype)
    return UNetInputs(sample, torch.stack(embeddings), Context(keys_values), 0)


def measure_error(setup: Setup, weights: Weights) -> float:
    """Return the relative RMS error of the UNet's output in its own dtype against float32."""
    inputs, module = build_inputs(setup, weights), cast("Any", weights.unet).module
    half = module(inputs.sample, inputs.embedding, inputs.context).float()
    context = Context(inputs.context.keys_values.float())
    full = copy.deepcopy(module).float()(inputs.sample.float(), inputs.embedding.float(), context)
    return float((half - full).norm() / full.norm())


def count_operations(setup: Setup, weights: Weights) -> float:
    """Return the floating-point operations of one image: all CFG passes and the VAE decode."""
    inputs = build_inputs(setup, weights)
    with FlopCounterMode(display=False) as counter:
        weights.unet(inputs.sample, inputs.embedding, inputs.context)
    one_pass = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        weights.vae.decode(inputs.sample[:1].to(weights.vae_dtype))
    return setup.steps * one_pass + counter.get_total_flops()


def measure_matmul_rate(setup: Setup, weights: Weights) -> float:
    """Return the operations per second of a large matrix product in the networks' dtype."""
    side = setup.matrix
    a, b = (torch.randn(side, side, device=weights.device).to(weights.dtype) for _ in range(2))
    times = [time_call(weights.device, lambda: a @ b) for _ in range(20)]
    return 2 * side**3 / min(times)


def time_call(device: torch.device, call: Callable[[], object]) -> float:
    """Return the wall time of a call in seconds, until the device has finished."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def build_diffusers_run(setup: Setup, weights: Weights, *, compiled: bool) -> Callable[[], object]:
    """Return a function that generates an image with diffusers' pipeline and scheduler on the same networks."""
    pipe = build_pipeline(weights)
    if compiled:
        compile_pipeline(pipe)
    generate_latents = build_latents_run(pipe, weights, (setup.width, setup.height), setup.steps)

    def generate() -> object:
        latents = generate_latents() / weights.architecture.latent_scale
        decoded = pipe.vae.decode(latents.to(weights.vae_dtype), return_dict=False)[0]
        return pipe.image_processor.postprocess(decoded.float(), output_type="np")

    return generate


def compile_networks(setup: Setup, pipeline: Pipeline) -> None:
    """Compile those networks that were chosen to be, for the size of the benchmark."""
    pipeline.compile_decoder([(setup.width, setup.height)])
    if pipeline.weights.speed.compile_unet:
        with pipeline.weights.unet.compile_passes():
            pipeline.run(setup.build_job())


def time_rounds(
    device: torch.device, runs: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of each run in each round; the first call of each, which warms it up, is one more."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + rounds):
        for name, run in runs.items():
            seconds[name].append(time_call(device, run))
    return seconds


def time_in_turns(
    device: torch.device, runs: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, dict[str, Any]]:
    """Return the seconds of each run: of its first call, of each round, and their median."""
    return {
        name: {
            "seconds": round(median(each), 4),
            "first_seconds": round(first, 2),
            "all_seconds": [round(value, 4) for value in each],
        }
        for name, (first, *each) in time_rounds(device, runs, rounds).items()
    }


def measure_throughput(setup: Setup, weights: Weights) -> dict[str, float]:
    """Return the images a minute that are drawn together, by how many they are."""
    pipeline = Pipeline(weights, batching="shared", pass_limits=find_pass_limits(weights))
    found: dict[str, float] = {}
    for count in AT_ONCE:
        job = setup.build_job(count)
        times = [time_call(weights.device, lambda job=job: pipeline.run(job)) for _ in range(3)]
        found[str(count)] = round(60 * count / min(times[1:]), 2)
    return found


@torch.inference_mode()
def measure(setup: Setup, device: torch.device, dtype: torch.dtype) -> dict[str, object]:
    """Check the error against float32, then time naiad and diffusers in turns."""
    plain = build_random_weights(setup.architecture, device, dtype)
    error = measure_error(setup, plain)
    assert error < LARGEST_ERROR, f"{dtype} differs from float32 by {error:.3%}"
    operations, rate = count_operations(setup, plain), measure_matmul_rate(setup, plain)
    weights = copy_weights(plain, choose_speed(device, SpeedChoices()))
    pipeline, job = Pipeline(weights), setup.build_job()
    speed = choose_speed(device, SpeedChoices(compile_vae="on", compile_unet="on"))
    compiled = Pipeline(copy_weights(plain, speed))
    compile_networks(setup, compiled)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    sides = time_in_turns(
        device,
        {
            "naiad": lambda: pipeline.run(job),
            "naiad, compiled": lambda: compiled.run(job),
            "diffusers": build_diffusers_run(setup, plain, compiled=False),
            "diffusers, compiled": build_diffusers_run(setup, plain, compiled=True),
        },
        setup.rounds,
    )
    own = sides["naiad"]["seconds"]
    return {
        "picture": setup.picture,
        "dtype": str(dtype).removeprefix("torch."),
        "relative_difference_from_float32": round(error, 5),
        "sides": sides,
        "compiled_naiad_to_naiad": round(sides["naiad, compiled"]["seconds"] / own, 3),
        "diffusers_to_naiad": round(sides["diffusers"]["seconds"] / own, 3),
        "compiled_diffusers_to_naiad": round(sides["diffusers, compiled"]["seconds"] / own, 3),
        "tera_operations": round(operations / 1e12, 2),
        "matrix_product_tera_operations_per_second": round(rate / 1e12, 2),
        "naiad_to_floor": round(own * rate / operations, 2),
        "images_a_minute_by_images_at_once": measure_throughput(setup, weights),
        "peak_memory_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
        if device.type == "cuda"
        else None,
    }


def parse_setup(description: str | None, default: str) -> tuple[Setup, torch.device, torch.dtype, Path]:
    """Read the options of a benchmark of this kind: what it runs, where and in what, and the file for its results."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--small",
        action="store_true",
        help="the demo model's architecture at a small size; runs on a CPU too",
    )
    parser.add_argument("--out", type=Path, help="JSON file to write; by default in benchmarks/results/")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not arguments.small:
        parser.error("no GPU found; --small runs the same code on the CPU")
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    file = RESULTS / f"{default}-{'small-' if arguments.small else ''}{device.type}.json"
    return SMALL if arguments.small else FULL, device, dtype, arguments.out or file


def save(result: Mapping[str, object], file: Path) -> None:
    """Print a result, and write it with what it was measured on."""
    result = {**result, "machine": machine()}
    for key, value in result.items():
        print(f"{key:42} {value}")
    file.write_text(json.dumps(result, indent=2) + "\n")


def main() -> None:
    """Measure, print, and write the JSON file."""
    setup, device, dtype, file = parse_setup(__doc__, "gpu")
    save(measure(setup, device, dtype), file)


if __name__ == "__main__":
    main()
