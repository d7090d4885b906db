"""Edge maps of an image, white on black, as the annotators of ControlNet draw them."""

import numpy as np

from pipelines.types import Pixels
from server.director.planes import (
    Mask,
    Plane,
    blur,
    keep_strong_parts,
    measure_stroke,
    ndimage,
    split_channels,
    to_gray_pixels,
)

CANNY_LOW, CANNY_HIGH = 100.0, 200.0
"""ControlNet's thresholds, for sums of absolute Sobel derivatives of 8-bit values."""
SLANT = 0.41421356
"""Tangent of 22.5°, where the neighbor across an edge changes from the next pixel to the diagonal one."""


def draw_canny(rgb: Pixels, low: float = CANNY_LOW, high: float = CANNY_HIGH) -> Pixels:
    """Return Canny's edges, one pixel wide: those above `low` that are connected to one above `high`.

    Of the three channels the one with the largest derivative counts at each pixel.
    """
    low, high = min(low, high), max(low, high)
    gradients = [_differentiate(255 * channel) for channel in split_channels(rgb)]
    across, down = gradients[0]
    strength = np.abs(across) + np.abs(down)
    for next_across, next_down in gradients[1:]:
        larger = np.abs(next_across) + np.abs(next_down)
        wins = larger > strength
        across, down = np.where(wins, next_across, across), np.where(wins, next_down, down)
        strength = np.maximum(strength, larger)
    ridge = _find_ridge(strength, across, down) & (strength > low)
    edges = keep_strong_parts(ridge, strength, np.nextafter(np.float32(high), np.float32(np.inf)))
    return to_gray_pixels(edges.astype(np.float32))


def draw_soft_edges(rgb: Pixels) -> Pixels:
    """Return soft edges of objects, as HED draws them: fine and coarse gradients together, by their own strength."""
    strength, _, _ = _measure_soft_edges(rgb)
    return to_gray_pixels(strength)


def draw_scribble(rgb: Pixels) -> Pixels:
    """Return the main edges as strokes of a thick pen, without any shades."""
    strength, across, down = _measure_soft_edges(rgb)
    stroke = measure_stroke(*strength.shape)
    ridge = _find_ridge(strength, across, down) & (strength > 0.25)
    lines = keep_strong_parts(ridge, strength, 0.5, smallest=24 * stroke)
    return to_gray_pixels((blur(lines.astype(np.float32), 2.5 * stroke) > 0.05).astype(np.float32))


def _measure_soft_edges(rgb: Pixels) -> tuple[Plane, Plane, Plane]:
    """Return the strength of edges from 0 to 1, and the derivatives across and down that it comes from."""
    channels = split_channels(rgb)
    stroke = measure_stroke(*channels[0].shape)
    fine, coarse = (_measure_gradient(channels, scale * stroke) for scale in (1.2, 2.8))
    strength = np.sqrt(fine * coarse * (1.2 * 2.8))
    half = max(0.35 * float(np.percentile(strength[::2, ::2], 99)), 0.08)
    luma = blur(sum(channels, np.zeros_like(strength)), 2 * stroke)
    return (strength**2 / (strength**2 + half**2)).astype(np.float32), *_differentiate(luma)


def _measure_gradient(channels: list[Plane], sigma: float) -> Plane:
    """Return the length of the gradient of all channels together, after a blur."""
    squares = np.zeros_like(channels[0])
    for channel in channels:
        across, down = _differentiate(blur(channel, sigma))
        squares += across**2 + down**2
    return np.sqrt(squares)


def _differentiate(plane: Plane) -> tuple[Plane, Plane]:
    """Return Sobel's derivatives across and down."""
    return ndimage.sobel(plane, 1, mode="nearest"), ndimage.sobel(plane, 0, mode="nearest")


def _find_ridge(strength: Plane, across: Plane, down: Plane) -> Mask:
    """Return where the strength is largest along its gradient; equal neighbors are treated as by OpenCV."""
    padded = np.pad(strength, 1)
    height, width = strength.shape

    def shift(rows: int, columns: int) -> Plane:
        return padded[1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]

    flat, steep = np.abs(down) <= SLANT * np.abs(across), np.abs(across) < SLANT * np.abs(down)
    falling = np.sign(across) * np.sign(down) >= 0
    before = np.where(
        flat, shift(0, -1), np.where(steep, shift(-1, 0), np.where(falling, shift(-1, -1), shift(-1, 1)))
    )
    after = np.where(
        flat, shift(0, 1), np.where(steep, shift(1, 0), np.where(falling, shift(1, 1), shift(1, -1)))
    )
    return (strength > before) & np.where(flat | steep, strength >= after, strength > after)
