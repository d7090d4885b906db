"""The launch of a Triton kernel as a value: it can be run, or compiled for a GPU that is absent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from triton import JITFunction

Argument = Tensor | int | float


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel, its grid of programs, its arguments by name, warps of a program, and most registers of a thread."""

    kernel: "JITFunction"
    grid: tuple[int, int, int]
    arguments: Mapping[str, Argument]
    warps: int
    registers: int


def run_launch(launch: Launch, device: torch.device) -> None:
    """Enqueue a kernel on the current stream of a device. Nothing is read back, so CUDA graphs can capture it.

    The first launch with other constants or dtypes compiles the kernel, which takes about a second.
    """
    with torch.cuda.device(device if device.type == "cuda" else -1):
        launch.kernel[launch.grid](**launch.arguments, num_warps=launch.warps, maxnreg=launch.registers)
