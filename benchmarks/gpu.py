"""Claim: an image takes little more time than its floating-point operations need. Run by gpu.sh.

In one run on one device: half precision against float32; then naiad and plain diffusers on the same random weights,
alternating, medians over images with 28 Euler steps, CFG and VAE decode. The floor is the number of counted
floating-point operations divided by the rate of a large matrix product measured here. Seconds are only valid on a GPU.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.diffusers_pipeline import build_latents_run, build_pipeline, encode_prompts
from benchmarks.machine import machine
from demo.architecture import demo_architecture
from pipelines.job import Guidance, Job, Pass, Prompts
from pipelines.pipeline import Pipeline
from pipelines.unet.attention import Context
from pipelines.unet.graphs import UNetInputs
from pipelines.weights.architecture import Architecture, sdxl
from pipelines.weights.detect import Detection
from pipelines.weights.load import Weights
from pipelines.weights.networks import build_networks

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Setup:
    """Shapes of the benchmark: model, image size, steps, rounds, and side of the measured matrix product."""

    architecture: Architecture
    width: int
    height: int
    steps: int
    rounds: int
    matrix: int


FULL = Setup(sdxl(), 832, 1216, 28, 5, 8192)
SMALL = Setup(demo_architecture(), 256, 384, 4, 3, 1024)


def build_random_weights(architecture: Architecture, device: torch.device, dtype: torch.dtype) -> Weights:
    """Build a model with random weights directly on the device."""
    unet, vae, towers = build_networks(architecture)
    generator = torch.Generator(device).manual_seed(0)
    for module in (unet.module, vae.module, *(tower.module for tower in towers)):
        randomize(module.to_empty(device=device), generator)
        nn.Module.to(module, dtype=dtype)
    vae_dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    nn.Module.to(vae.module, dtype=vae_dtype)
    identity = Detection("sdxl", "single", 4, "v", True, ("random weights",))
    return Weights(identity, architecture, unet, vae, towers, device, dtype, vae_dtype)


def randomize(module: nn.Module, generator: torch.Generator) -> None:
    """Set norm gains to 1, biases to 0, and scale the other weights by fan-in, so that activations stay finite."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.ndim > 1:
                parameter.normal_(generator=generator).mul_(0.5 * parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(1.0 if name == "weight" else 0.0)
        for name, buffer in part.named_buffers(recurse=False):
            assert name == "position_ids", name
            buffer.copy_(torch.arange(buffer.shape[-1])[None])


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


def build_diffusers_run(setup: Setup, weights: Weights) -> Callable[[], object]:
    """Return a function that generates an image with diffusers' pipeline and scheduler on the same networks."""
    pipe = build_pipeline(weights)
    generate_latents = build_latents_run(pipe, weights, (setup.width, setup.height), setup.steps)

    def generate() -> object:
        latents = generate_latents()
        latents = (latents / weights.architecture.latent_scale).to(weights.vae_dtype)
        decoded = pipe.vae.decode(latents).sample
        return pipe.image_processor.postprocess(decoded.float(), output_type="np")

    return generate


@torch.inference_mode()
def measure(setup: Setup, device: torch.device, dtype: torch.dtype) -> dict[str, object]:
    """Check the error against float32, then time naiad and diffusers in turns."""
    weights = build_random_weights(setup.architecture, device, dtype)
    error = measure_error(setup, weights)
    assert error < 0.02, f"{dtype} differs from float32 by {error:.3%}"
    pipeline = Pipeline(weights)
    job = Job(
        "m", Prompts("1girl, smile", "lowres"), setup.steps, "k_euler", "native", Guidance(5.0),
        (Pass(setup.width, setup.height, (1,)),),
    )  # fmt: skip
    sides = {"naiad": lambda: pipeline.run(job), "diffusers": build_diffusers_run(setup, weights)}
    for generate in sides.values():
        generate()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(setup.rounds):
        for name, generate in sides.items():
            times[name].append(time_call(device, generate))
    two = time_call(
        device, lambda: pipeline.run(replace(job, passes=(replace(job.passes[0], seeds=(1, 2)),)))
    )
    naiad, diffusers = median(times["naiad"]), median(times["diffusers"])
    operations, rate = count_operations(setup, weights), measure_matmul_rate(setup, weights)
    return {
        "picture": f"{setup.width}x{setup.height}, {setup.steps} steps, k_euler, CFG",
        "dtype": str(dtype).removeprefix("torch."),
        "relative_difference_from_float32": error,
        "seconds": round(naiad, 3),
        "diffusers_seconds": round(diffusers, 3),
        "ratio_to_diffusers": round(naiad / diffusers, 3),
        "two_samples_seconds": round(two, 3),
        "tera_operations": round(operations / 1e12, 2),
        "matrix_product_tera_operations_per_second": round(rate / 1e12, 2),
        "ratio_to_floor": round(naiad * rate / operations, 2),
        "peak_memory_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
        if device.type == "cuda"
        else None,
        "all_seconds": {name: [round(value, 3) for value in values] for name, values in times.items()},
        "machine": machine(),
    }


def main() -> None:
    """Measure, print, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
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
    setup = SMALL if arguments.small else FULL
    result = measure(setup, device, torch.float16 if device.type == "cuda" else torch.bfloat16)
    for key, value in result.items():
        print(f"{key:42} {value}")
    output = arguments.out or RESULTS / f"gpu-{'small-' if arguments.small else ''}{device.type}.json"
    output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
