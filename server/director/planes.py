"""Float planes of an image, and the filters on them that the tools share. Tones run from 0, black, to 1, white."""

from math import sqrt
from typing import Any, TypeAlias, cast

import numpy as np
from scipy import ndimage as scipy_ndimage  # pyright: ignore[reportMissingTypeStubs]

from pipelines.types import Pixels

Plane: TypeAlias = np.ndarray[tuple[int, int], np.dtype[Any]]
"""Values of float32; the checker cannot follow its arithmetic."""
Mask: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.bool_]]
ndimage: Any = cast("Any", scipy_ndimage)
LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in luma (BT.601)."""
NEIGHBORS = np.ones((3, 3), bool)


def measure_stroke(height: int, width: int) -> float:
    """Return the width in pixels of a fine pen's stroke in an image of this size: 1 at 1024x1024."""
    return min(2.0, max(0.5, sqrt(height * width) / 1024))


def split_channels(rgb: Pixels) -> list[Plane]:
    """Return red, green and blue as planes."""
    return [rgb[..., channel].astype(np.float32) / 255 for channel in range(3)]


def compute_luma(channels: list[Plane]) -> Plane:
    """Return the weighted sum of red, green and blue."""
    red, green, blue = (weight * plane for weight, plane in zip(LUMA, channels, strict=True))
    return red + green + blue


def blur(plane: Plane, sigma: float) -> Plane:
    """Apply a Gaussian blur; beyond the borders the outermost pixels are repeated."""
    return ndimage.gaussian_filter(plane, sigma, mode="nearest", truncate=3.0)


def to_gray_pixels(plane: Plane) -> Pixels:
    """Convert a plane to a gray image in RGB."""
    gray = (plane.clip(0, 1) * 255).round().astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=2)


def keep_strong_parts(mask: Mask, strength: Plane, least: float, smallest: float = 1) -> Mask:
    """Return the connected parts of a mask that reach a strength of `least` and have at least `smallest` pixels."""
    labels, count = ndimage.label(mask, NEIGHBORS)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    peaks = np.zeros(count + 1, np.float32)
    np.maximum.at(peaks, labels[mask], strength[mask])
    keep = (peaks >= least) & (sizes >= smallest)
    keep[0] = False
    return keep[labels]
