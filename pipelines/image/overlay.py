"""Lay the init image over an inpainted one, so that nothing outside the mask changes and no seam shows inside."""

from typing import Any, cast

import numpy as np
from scipy import ndimage  # pyright: ignore[reportMissingTypeStubs]

from pipelines.job import InitImage
from pipelines.types import Pixels

PixelMask = np.ndarray[tuple[int, int], np.dtype[np.bool_]]
Weights = np.ndarray[tuple[int, int], np.dtype[np.float64]]
SEAM = 16  # width in pixels, inside the mask, of the transition to the generated image


def apply_overlay(pixels: Pixels, init_image: InitImage) -> Pixels:
    """Lay an init image over the generated image (height, width, 3) outside the mask.

    `init_image.overlay` sets the transition: "soft" feathers inside the mask, "hard" cuts at its edge. With "none", or
    without a mask, the generated image is returned unchanged.
    """
    if init_image.mask is None or init_image.overlay == "none":
        return pixels
    mask = expand_mask(init_image.mask, *pixels.shape[:2])
    weights = mask.astype(float) if init_image.overlay == "hard" else feather(mask)
    original = np.frombuffer(init_image.image.rgb, np.uint8).reshape(pixels.shape)
    blended = original + weights[..., None] * (pixels.astype(float) - original)
    return blended.round().astype(np.uint8)


def expand_mask(mask: bytes, height: int, width: int) -> PixelMask:
    """Expand an init image's mask, a byte for each latent, to a boolean (height, width): True where it may change."""
    latent_mask = np.frombuffer(mask, np.uint8).reshape(height // 8, width // 8) > 0
    return latent_mask.repeat(8, axis=0).repeat(8, axis=1)


def feather(mask: PixelMask) -> Weights:
    """Smoothstep weights: 0 at the mask's edge, 1 from SEAM pixels inside on. Image borders are not feathered."""
    padded = np.pad(mask, SEAM, mode="edge")
    distance = cast("Weights", cast("Any", ndimage).distance_transform_edt(padded))[SEAM:-SEAM, SEAM:-SEAM]
    weight = ((distance - 0.5) / SEAM).clip(0.0, 1.0)
    return weight * weight * (3 - 2 * weight)
