"""How much the images that share a pass of a network may have together, so that memory suffices for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from pipelines.device import find_free_memory
from pipelines.sampling.batching import MEGAPIXEL, MOST_LATENTS
from pipelines.weights.architecture import Architecture, Config

if TYPE_CHECKING:
    from pipelines.weights.load import Weights

UNET_MAPS, VAE_MAPS = 15, 6
"""Feature maps at full resolution, with the channels of the outermost block, that are alive at once: counted in a pass
of SDXL's networks on the meta device, with attention that has no matrix of scores, as torch's kernels on a GPU."""
USED = 0.5
"""Share of the free memory that a pass may take; the rest is for what libraries need, and for ControlNets."""


@dataclass(frozen=True, slots=True)
class PassLimits:
    """The most latents in a pass: of the UNet over all rows, of the VAE's decoder over all images."""

    unet: float = MOST_LATENTS
    vae: float = MEGAPIXEL


def find_pass_limits(weights: "Weights", max_rows: int | None = None) -> PassLimits:
    """Return the limits for a model in the memory that is free now, where a device reports it.

    Args:
        max_rows: rows of a megapixel in a pass of the UNet; None lets the free memory decide.
    """
    limits, free = PassLimits(), find_free_memory(weights.device)
    if free is not None:
        unet = count_row_bytes(weights.architecture, weights.dtype)
        # in float32, which the VAE may fall back on
        vae = count_decoder_bytes(weights.architecture, torch.float32)
        limits = PassLimits(min(limits.unet, USED * free / unet), USED * free / vae)
    return limits if max_rows is None else PassLimits(max_rows * MEGAPIXEL, limits.vae)


def count_row_bytes(architecture: Architecture, dtype: torch.dtype) -> int:
    """Return the bytes that a row's features take for each latent, at the peak of a pass."""
    return UNET_MAPS * _count_channels(architecture.unet) * dtype.itemsize


def count_decoder_bytes(architecture: Architecture, dtype: torch.dtype) -> int:
    """Return the bytes that decoding takes for each latent, at its peak."""
    return VAE_MAPS * 64 * _count_channels(architecture.vae) * dtype.itemsize


def _count_channels(config: Config) -> int:
    return cast("Sequence[int]", config["block_out_channels"])[0]
