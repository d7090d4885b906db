"""Claim: a picture costs little more than its arithmetic. See gpu.sh, which runs this.

On one device, in one run: half precision against float32; then naiad and plain diffusers on the same random
weights, alternating, medians of pictures with 28 Euler steps, CFG and decoding; the floor is the counted
floating-point operations at the rate of a large matrix product measured here. Seconds count on a GPU alone.
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
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline  # pyright: ignore[reportPrivateImportUsage]
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import machine
from demo.architecture import demo_architecture
from pipelines.job import Guidance, Job, Prompts
from pipelines.pipeline import Pipeline
from pipelines.text.encoding import PromptEncoder
from pipelines.weights.architecture import Architecture, sdxl
from pipelines.weights.detect import Detection
from pipelines.weights.load import Weights
from pipelines.weights.networks import build_networks

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Size:
    """What is drawn, and how often each side draws it."""

    architecture: Architecture
    width: int
    height: int
    steps: int
    rounds: int
    matrix: int


FULL = Size(sdxl(), 832, 1216, 28, 5, 8192)
SMALL = Size(demo_architecture(), 256, 384, 4, 3, 1024)


def random_weights(architecture: Architecture, device: torch.device, dtype: torch.dtype) -> Weights:
    """A model of random weights made where it will run: no file, no copy."""
    unet, vae, towers = build_networks(architecture)
    generator = torch.Generator(device).manual_seed(0)
    for module in (unet.module, vae.module, *(tower.module for tower in towers)):
        randomise(module.to_empty(device=device), generator)
        nn.Module.to(module, dtype=dtype)
    vae_dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    nn.Module.to(vae.module, dtype=vae_dtype)
    identity = Detection("sdxl", "single", 4, "v", True, ("random weights",))
    return Weights(identity, architecture, unet, vae, towers, device, dtype, vae_dtype)


def randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Norm gains at one, biases at zero, the rest shrunk by its fan-in, so that activations stay finite."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.ndim > 1:
                parameter.normal_(generator=generator).mul_(0.5 * parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(1.0 if name == "weight" else 0.0)
        for name, buffer in part.named_buffers(recurse=False):
            assert name == "position_ids", name
            buffer.copy_(torch.arange(buffer.shape[-1])[None])


def inputs(
    size: Size, weights: Weights
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """One CFG pass: latents, times, text and size ids of two rows."""
    texts = PromptEncoder(weights.text_encoders, weights.device).encode(Prompts("1girl, smile", "lowres"))
    noise = torch.randn(2, 4, size.height // 8, size.width // 8, generator=torch.Generator().manual_seed(1))
    context = torch.stack([texts.positive.context, texts.negative.context]).to(weights.dtype)
    assert texts.positive.pooled is not None
    assert texts.negative.pooled is not None
    pooled = torch.stack([texts.positive.pooled, texts.negative.pooled]).to(weights.dtype)
    ids = torch.tensor(
        [[size.height, size.width, 0, 0, size.height, size.width]] * 2, device=weights.device
    ).float()
    times = torch.tensor([500.0, 500.0], device=weights.device)
    return noise.to(weights.device, weights.dtype), times, context, {"text_embeds": pooled, "time_ids": ids}


def half_against_full(size: Size, weights: Weights) -> float:
    """The relative rms difference of the UNet's output in its own dtype and in float32."""
    sample, times, context, added = inputs(size, weights)
    half = weights.unet(sample, times, context, added).float()
    unet = cast("Any", copy.copy(weights.unet))
    unet.module = copy.deepcopy(unet.module).float()
    added32 = {name: tensor.float() for name, tensor in added.items()}
    full = unet(sample.float(), times, context.float(), added32)
    return float((half - full).norm() / full.norm())


def operations(size: Size, weights: Weights) -> float:
    """Floating-point operations of a whole picture: every CFG pass, and the decoding."""
    sample, times, context, added = inputs(size, weights)
    with FlopCounterMode(display=False) as counter:
        weights.unet(sample, times, context, added)
    one_pass = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        weights.vae.decode(sample[:1].to(weights.vae_dtype))
    return size.steps * one_pass + counter.get_total_flops()


def peak_rate(size: Size, weights: Weights) -> float:
    """Operations a second in one large matrix product of the networks' dtype."""
    side = size.matrix
    a, b = (torch.randn(side, side, device=weights.device).to(weights.dtype) for _ in range(2))
    times = [seconds(weights.device, lambda: a @ b) for _ in range(20)]
    return 2 * side**3 / min(times)


def seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Wall time of some work, the device's queue included."""
    settle(device)
    start = time.perf_counter()
    work()
    settle(device)
    return time.perf_counter() - start


def settle(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def plain_diffusers(size: Size, weights: Weights) -> Callable[[], object]:
    """diffusers' own pipeline, scheduler and loop on the same networks."""
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    pipe = cast("Any", StableDiffusionXLPipeline)(
        vae=cast("Any", weights.vae).module,
        unet=cast("Any", weights.unet).module,
        scheduler=scheduler,
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    _, _, context, added = inputs(size, weights)

    def draw() -> object:
        latents = pipe(
            prompt_embeds=context[:1],
            negative_prompt_embeds=context[1:],
            pooled_prompt_embeds=added["text_embeds"][:1],
            negative_pooled_prompt_embeds=added["text_embeds"][1:],
            width=size.width,
            height=size.height,
            num_inference_steps=size.steps,
            guidance_scale=5.0,
            generator=torch.Generator().manual_seed(1),
            output_type="latent",
        ).images
        decoded = weights.vae.decode((latents / weights.architecture.latent_scale).to(weights.vae_dtype))
        return pipe.image_processor.postprocess(decoded.float(), output_type="np")

    return draw


@torch.inference_mode()
def measure(size: Size, device: torch.device, dtype: torch.dtype) -> dict[str, object]:
    """Correctness first, then both sides in turn."""
    weights = random_weights(size.architecture, device, dtype)
    difference = half_against_full(size, weights)
    assert difference < 0.02, f"{dtype} differs from float32 by {difference:.3%}"
    pipeline = Pipeline(weights)
    job = Job(
        "m", Prompts("1girl, smile", "lowres"), size.width, size.height, size.steps, "k_euler", "native",
        Guidance(5.0), seeds=(1,),
    )  # fmt: skip
    sides = {"naiad": lambda: pipeline.run(job), "diffusers": plain_diffusers(size, weights)}
    for draw in sides.values():
        draw()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(size.rounds):
        for name, draw in sides.items():
            times[name].append(seconds(device, draw))
    two = seconds(device, lambda: pipeline.run(replace(job, seeds=(1, 2))))
    ours, theirs = median(times["naiad"]), median(times["diffusers"])
    work, rate = operations(size, weights), peak_rate(size, weights)
    return {
        "picture": f"{size.width}x{size.height}, {size.steps} steps, k_euler, CFG",
        "dtype": str(dtype).removeprefix("torch."),
        "relative_difference_from_float32": difference,
        "seconds": round(ours, 3),
        "diffusers_seconds": round(theirs, 3),
        "ratio_to_diffusers": round(ours / theirs, 3),
        "two_samples_seconds": round(two, 3),
        "tera_operations": round(work / 1e12, 2),
        "matrix_product_tera_operations_per_second": round(rate / 1e12, 2),
        "ratio_to_floor": round(ours * rate / work, 2),
        "peak_memory_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
        if device.type == "cuda"
        else None,
        "all_seconds": {name: [round(value, 3) for value in values] for name, values in times.items()},
        "machine": machine(),
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--small", action="store_true", help="the demo's shapes at a small size, on a CPU if need be"
    )
    parser.add_argument("--out", type=Path, help="where the JSON goes; benchmarks/results/ by default")
    asked = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not asked.small:
        parser.error("no GPU is here; --small runs the same path on the CPU")
    size = SMALL if asked.small else FULL
    result = measure(size, device, torch.float16 if device.type == "cuda" else torch.bfloat16)
    for key, value in result.items():
        print(f"{key:42} {value}")
    place = asked.out or RESULTS / f"gpu-{'small-' if asked.small else ''}{device.type}.json"
    place.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
