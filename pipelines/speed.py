"""Ways to run the networks faster on a device. None changes what is computed but for rounding."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

Choice: TypeAlias = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True)
class Speed:
    """What is used.

    Attributes:
        channels_last: whether the features of convolutions have the channels last in memory, which tensor cores need.
        fused_projections: whether queries, keys and values of self-attention are one matrix product.
        kernels: whether normalization and gates are Triton kernels; they need channels last.
        graphs: whether all kernels of a pass are launched as a CUDA graph.
        compile_vae: whether torch compiles the VAE's decoder.
    """

    channels_last: bool = False
    fused_projections: bool = False
    kernels: bool = False
    graphs: bool = False
    compile_vae: bool = False


PLAIN = Speed()


@dataclass(frozen=True, slots=True)
class SpeedChoices:
    """What an operator chose; the fields are those of `Speed`."""

    channels_last: Choice = "auto"
    fused_projections: Choice = "auto"
    kernels: Choice = "auto"
    graphs: Choice = "auto"
    compile_vae: Choice = "auto"


def choose_speed(device: torch.device, choices: SpeedChoices, streams: bool = False) -> Speed:
    """Return what is used on a device: "auto" is everything but compilation on CUDA and nothing elsewhere.

    What compilation gains was not measured on a GPU yet. A CPU maps its weights from the file, so that changing their
    layout would take the memory for a copy. Kernels and graphs exist on CUDA alone.

    Args:
        streams: whether weights are copied to the device in each pass, layer by layer.
    """
    is_cuda = device.type == "cuda"

    def decide(choice: Choice, cuda_only: bool = False) -> bool:
        return is_cuda and choice != "off" if cuda_only or choice == "auto" else choice == "on"

    channels_last = decide(choices.channels_last)
    return Speed(
        channels_last,
        not streams and decide(choices.fused_projections),
        channels_last and decide(choices.kernels, cuda_only=True),
        not streams and decide(choices.graphs, cuda_only=True),
        choices.compile_vae == "on",
    )
