"""Claim: none, but what an image of SDXL takes of a GPU, counted without one.

A full-size model without memory for its weights draws an image on a `DryDevice` (dispatch.py). The table has the bytes
of the weights and of the tensors that exist at once in each stage, the operations, and the transfers that the host
waits for. Attention allocates its output alone, as fused kernels do. Not counted is what a GPU's libraries take:
contexts, workspaces of convolutions, and gaps between tensors.
Run: python -m benchmarks.dry_run.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.dispatch import META, NUMBER, Counts, DryDevice, Kind
from benchmarks.machine import machine
from pipelines.job import Guidance, Job, Pass, Prompts
from pipelines.pipeline import Pipeline
from pipelines.speed import SpeedChoices, WeightFormat, choose_speed
from pipelines.steps import Stage, Step, StepCoroutine, take_steps
from pipelines.types import Pixels, PredictionType, Size
from pipelines.weights.architecture import Architecture, sdxl
from pipelines.weights.detect import Detection
from pipelines.weights.load import Weights, choose_vae_dtype
from pipelines.weights.networks import TorchUNet, build_networks
from pipelines.weights.placement import choose_plan, place_weights

RESULTS = Path(__file__).parent / "results"
MIB = 1 << 20
STEPS = 4
"""Of an image; no step after the first takes more than another."""
SIZES: tuple[Size, ...] = (832, 1216), (1024, 1024)
PROMPTS = {
    tokens: Prompts("1girl, " * words, "lowres, bad anatomy") for tokens, words in ((77, 2), (231, 70))
}
"""Prompts by the tokens they are encoded as: 77 for each chunk of up to 75."""
STAGES: tuple[Stage, ...] = "encode", "draw", "decode"
PARTS = "unet", "vae", "text_encoders"
KINDS: tuple[Kind, ...] = "read", "upload", "download"

CARDS = (24, 8, 6, 4)
"""Gigabytes of the cards that memory plans are made for; those of 10 to 24 have the same plan."""


class DryCopier:
    """Stands for copies from CPU memory: weights that wait there are not counted, and their copies are."""

    def store(self, tensor: Tensor) -> Tensor:
        return tensor

    def start(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        with torch.inference_mode(False):  # parameters on the meta device take no other tensors
            return [torch.empty_like(tensor) for tensor in tensors]

    def finish(self, copies: list[Tensor]) -> None:
        pass


class InlineExecutor(Executor):
    """Computes everything at once, on the thread that asks for it."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@dataclass(frozen=True, slots=True)
class TracedStep:
    """A step of an image.

    Attributes:
        own: what the step asked of the device.
        after: what the image asked until its next step: guidance and sampler, after a pass of the UNet.
    """

    stage: Stage
    own: Counts
    after: Counts


@dataclass(frozen=True, slots=True)
class Trace:
    """What an image asked of the device.

    Attributes:
        encode: before the image began.
        start: before its first step.
        peaks: bytes of the tensors that existed at once in each stage.
    """

    encode: Counts
    start: Counts
    steps: Sequence[TracedStep]
    peaks: Mapping[Stage, int]
    pixels: Pixels

    @property
    def draws(self) -> list[TracedStep]:
        """The passes of the UNet."""
        return [step for step in self.steps if step.stage == "draw"]

    @property
    def loop(self) -> list[Counts]:
        """The counts from the end of the first pass of the UNet to the end of the last."""
        first, *others = self.draws
        counts = [first.after, *(part for step in others for part in (step.own, step.after))]
        return counts[:-1]

    @property
    def all(self) -> list[Counts]:
        return [self.encode, self.start, *(part for step in self.steps for part in (step.own, step.after))]


def build_empty_weights(
    architecture: Architecture,
    prediction: PredictionType = "eps",
    zsnr: bool = False,
    dtype: torch.dtype = torch.float16,
    inpainting: Architecture | None = None,
    gigabytes: int = 24,
    weights: WeightFormat = "full",
) -> Weights:
    """Return a model without memory for its weights, in the dtypes and layout that it has on a GPU.

    Triton's kernels and CUDA graphs need a GPU and are left out; with them, it launches less.

    Args:
        inpainting: the architecture of a second UNet, with 9 input channels.
        gigabytes: of the card that the memory plan is made for.
        weights: of the UNets.
    """
    vae_dtype = choose_vae_dtype(dtype, torch.device("cuda"))
    unet, vae, text_encoders = build_networks(architecture)
    second = None if inpainting is None else TorchUNet(inpainting.unet)
    unets = [unet] if second is None else [unet, second]
    for network in (*unets, *text_encoders):
        network.module.to(dtype)
    vae.to(vae_dtype)
    networks: Any = SimpleNamespace(
        architecture=architecture, unet=unet, vae=vae, text_encoders=text_encoders, inpainting=second
    )
    memory = choose_plan(networks, META, dtype, vae_dtype, gigabytes, weights != "full")
    for network in unets:
        if weights != "full":
            network.quantize(weights, META)
    offload = place_weights(networks, memory, META, DryCopier())
    choices = SpeedChoices(kernels="off", graphs="off", weights=weights)
    speed = choose_speed(torch.device("cuda"), choices, memory.streamed)
    for network in unets:
        network.optimize(speed, META)
    vae.optimize(speed)
    detection = Detection(architecture.family, "single", architecture.channels, prediction, zsnr, ())
    parts = unet, vae, text_encoders
    return Weights(detection, architecture, *parts, META, dtype, vae_dtype, second, (), memory, offload)


def build_pipeline(weights: Weights, **options: Any) -> Pipeline:
    """Return a pipeline that draws its noise on the thread that runs it, where it is counted."""
    pipeline = Pipeline(weights, **options)
    pipeline._noise_thread.shutdown()
    pipeline._noise_thread = InlineExecutor()  # pyright: ignore[reportAttributeAccessIssue]
    return pipeline


@torch.inference_mode()
def trace_image(pipeline: Pipeline, job: Job, number: float = NUMBER) -> Trace:
    """Draw the first image of a job.

    Args:
        number: what the host reads of floating-point tensors.
    """
    peaks: dict[Stage, int] = {}
    with DryDevice(number) as device:
        inputs = pipeline.begin_pass(job)
        peaks["encode"], encode = device.memory.peak, device.take_counts()
        device.memory.restart()
        image = pipeline.generate_image(inputs, 0)
        step, steps = image.send(None), list[TracedStep]()
        start = device.take_counts()
        while True:
            outputs = take_steps([step])
            own, following = device.take_counts(), _send(image, outputs[0])
            del outputs
            steps.append(TracedStep(step.stage, own, device.take_counts()))
            peaks[step.stage] = max(peaks.get(step.stage, 0), device.memory.peak)
            if not isinstance(following, Step):
                return Trace(encode, start, steps, peaks, following)
            if following.stage != step.stage:
                device.memory.restart()
            step = following


def _send(image: StepCoroutine[Pixels], output: Any) -> "Step | Pixels":
    """Send an image the result of its step; return its next step, or the image."""
    try:
        return image.send(output)
    except StopIteration as stop:
        return stop.value


def measure(weights: Weights, size: Size, prompts: Prompts) -> dict[str, Any]:
    """Return the figures of an image with CFG, see `summarize`."""
    job = Job("sdxl", prompts, STEPS, "k_euler", "native", Guidance(5.0), (Pass(*size, seeds=(1,)),))
    waiting = 0 if weights.offload is None else weights.offload.size
    figures = summarize(trace_image(build_pipeline(weights), job), measure_parts(weights), waiting)
    return {"plan": str(weights.memory), "planned_gigabytes": round(weights.memory.peak / 1e9, 2), **figures}


def summarize(trace: Trace, parts: Mapping[str, int], waiting: int) -> dict[str, Any]:
    """Return the figures of an image: bytes in MiB, operations, and transfers.

    Args:
        parts: the bytes of each part's weights.
        waiting: bytes of them that wait in CPU memory; copies of them count as activations.
    """
    resident = sum(parts.values()) - waiting
    peak = resident + max(trace.peaks.values())
    second = trace.draws[1]
    return {
        "weights_mib": {part: _to_mib(size) for part, size in parts.items()},
        "activations_mib": {stage: _to_mib(trace.peaks[stage]) for stage in STAGES},
        "weights_in_cpu_memory_mib": _to_mib(waiting),
        "peak_mib": _to_mib(peak),
        "peak_gigabytes": round(peak / 1e9, 2),
        "operations": {
            "encode": trace.encode.operations,
            "pass": second.own.operations,
            "guidance_and_sampler": second.after.operations,
            "decode": trace.steps[-1].own.operations,
        },
        "transfers": {kind: sum(counts.count(kind) for counts in trace.all) for kind in KINDS},
        "transfers_in_the_loop": sum(len(counts.transfers) for counts in trace.loop),
    }


def measure_parts(weights: Weights) -> dict[str, int]:
    """Return the bytes of each part's weights."""
    networks: Any = weights
    modules = [[networks.unet.module], [networks.vae.module], [e.module for e in networks.text_encoders]]
    return {part: sum(map(_measure_module, each)) for part, each in zip(PARTS, modules, strict=True)}


def _measure_module(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def _to_mib(size: int) -> float:
    return round(size / MIB, 1)


def print_row(row: Mapping[str, Any]) -> None:
    """Print the figures of one image."""
    activations, operations = row["activations_mib"], row["operations"]
    print(
        f"{row['mode']:6} {row['size']:>9} {row['tokens']:>6} {sum(row['weights_mib'].values()):>8.0f}"
        f" {activations['encode']:>7.0f} {activations['draw']:>7.0f} {activations['decode']:>7.0f}"
        f" {row['peak_mib']:>7.0f} {operations['pass']:>10} {operations['guidance_and_sampler']:>6}"
        f" {'/'.join(str(row['transfers'][kind]) for kind in KINDS):>10} {row['transfers_in_the_loop']:>5}"
    )


def main() -> None:
    """Measure, print and save."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("MiB; transfers are host reads, copies to the device and copies from it")
    print(
        f"{'card':6} {'size':>9} {'tokens':>6} {'weights':>8} {'encode':>7} {'draw':>7} {'decode':>7}"
        f" {'peak':>7} {'operations':>10} {'+':>6} {'transfers':>10} {'loop':>5}"
    )
    rows: list[dict[str, Any]] = []
    for card, size, tokens in product(CARDS, SIZES, PROMPTS):
        figures = measure(build_empty_weights(sdxl(), gigabytes=card), size, PROMPTS[tokens])
        rows.append({"mode": f"{card} GB", "size": "{}x{}".format(*size), "tokens": tokens, **figures})
        print_row(rows[-1])
    text = json.dumps({"steps": STEPS, "rows": rows, "machine": machine()}, indent=2)
    (RESULTS / "dry_run.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
