"""Ways to run the networks faster on a device. All but quantized weights compute the same but for rounding."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from pipelines.errors import UnusableSetting
from pipelines.kernels.triton_support import explain_missing_triton
from pipelines.unet.quantized_linear import QuantizedFormat, explain_missing_format

Choice: TypeAlias = Literal["auto", "on", "off"]
WeightFormat: TypeAlias = Literal["full"] | QuantizedFormat
"""In which the UNet's weights are: the dtype of the networks, or rounded to 8 bits."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What is used.

    Attributes:
        channels_last: whether the features of convolutions have the channels last in memory, which tensor cores need.
        fused_projections: whether queries, keys and values of self-attention are one matrix product.
        kernels: whether normalization and gates are Triton kernels; they need channels last.
        graphs: whether all kernels of a pass are launched as a CUDA graph.
        compile_vae: whether torch compiles the VAE's decoder.
        compile_unet: whether torch compiles the UNet.
        weights: how the linear layers of the UNet's transformer blocks compute.
    """

    channels_last: bool = False
    fused_projections: bool = False
    kernels: bool = False
    graphs: bool = False
    compile_vae: bool = False
    compile_unet: bool = False
    weights: WeightFormat = "full"


PLAIN = Speed()


@dataclass(frozen=True, slots=True)
class SpeedChoices:
    """What an operator chose; the fields are those of `Speed`."""

    channels_last: Choice = "auto"
    fused_projections: Choice = "auto"
    kernels: Choice = "auto"
    graphs: Choice = "auto"
    compile_vae: Choice = "auto"
    compile_unet: Choice = "auto"
    weights: WeightFormat = "full"


def choose_speed(device: torch.device, choices: SpeedChoices, streamed: int = 0) -> Speed:
    """Return what is used on a device: "auto" is everything but compilation on CUDA and nothing elsewhere.

    What compilation gains was not measured on a GPU yet. A CPU maps its weights from the file, so that changing their
    layout would take the memory for a copy. Kernels and graphs exist on CUDA alone. Quantized weights combine with all.

    Args:
        streamed: bytes of weights that are copied to the device in each pass, layer by layer.

    Raises:
        UnusableSetting: weights are streamed, and a choice needs them on the device.
    """
    is_cuda = device.type == "cuda"
    unusable = _explain_streamed(choices, streamed)
    if unusable is not None:
        raise UnusableSetting(unusable)

    def decide(choice: Choice, cuda_only: bool = False) -> bool:
        return is_cuda and choice != "off" if cuda_only or choice == "auto" else choice == "on"

    channels_last = decide(choices.channels_last)
    return Speed(
        channels_last,
        not streamed and decide(choices.fused_projections),
        channels_last and decide(choices.kernels, cuda_only=True),
        not streamed and decide(choices.graphs, cuda_only=True),
        choices.compile_vae == "on",
        choices.compile_unet == "on",
        choices.weights,
    )


def _explain_streamed(choices: SpeedChoices, streamed: int) -> str | None:
    """Return which choice needs weights on the device that are streamed, and what to do; None if none does."""
    if not streamed:
        return None
    reason = f"it needs all of the UNet on the GPU, but the memory plan copies {streamed / 1e9:.1f} GB in each pass"
    advice = "or raise speed.memory or free memory of the GPU"
    if choices.weights != "full":
        return f'speed.weights = "{choices.weights}": {reason}; set it to "full", {advice}'
    for name in ("fused_projections", "graphs", "compile_unet"):
        if getattr(choices, name) == "on":
            return f'speed.{name} = "on": {reason}; set it to "auto" or "off", {advice}'
    return None


def explain_unusable(device: torch.device, choices: SpeedChoices) -> str | None:
    """Return which choice cannot be used on a device, why, and what to do; None if all can."""
    if choices.weights != "full":
        missing = explain_missing_format(choices.weights, device)
        if missing is not None:
            other = '"full" or "int8"' if choices.weights == "float8" else '"full"'
            return f'speed.weights = "{choices.weights}": {missing}; set it to {other}'
    if choices.kernels == "on":
        missing = explain_missing_triton(device)
        if missing is None and not choose_speed(device, choices).kernels:
            missing = 'the kernels need speed.channels_last, which is "off"'
        if missing is not None:
            return f'speed.kernels = "on": {missing}; set it to "auto" or "off"'
    if choices.graphs == "on" and device.type != "cuda":
        reason = f"graphs are for GPUs with CUDA, and the device is {device}"
        return f'speed.graphs = "on": {reason}; set it to "auto" or "off"'
    return None


def explain_unused_kernels(device: torch.device, choices: SpeedChoices) -> str | None:
    """Return why kernels that "auto" chooses do not run on a device; None if they do, or if it chooses none."""
    return explain_missing_triton(device) if choose_speed(device, choices).kernels else None
