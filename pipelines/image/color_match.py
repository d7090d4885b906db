"""`color_correct`: a drawn picture gets back the colours of the one it started from.

NAI doesn't say how. Ours gives each channel of CIELAB the mean and the spread it has in the source (Reinhard et al.
2001), measured where the picture was kept: everywhere in img2img, outside the mask in infill.
"""

from typing import cast

import numpy as np

from pipelines.image.overlay import expand_mask
from pipelines.job import InitImage
from pipelines.types import Pixels

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def _matrix(rows: list[list[float]]) -> Floats:
    return np.array(rows, np.float32)


TO_XYZ = _matrix(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
)
"""Linear sRGB to CIE XYZ under D65 (IEC 61966-2-1), and back."""
TO_XYZ_BACK = cast("Floats", np.linalg.inv(TO_XYZ))
WHITE = TO_XYZ.sum(axis=1)
TO_LAB = _matrix([[0, 116, 0], [500, -500, 0], [0, 200, -200]])
TO_LAB_BACK = cast("Floats", np.linalg.inv(TO_LAB))
DARKEST = np.array([16, 0, 0], np.float32)
EDGE = 6 / 29
"""Where the cube root of CIELAB gives way to a line."""
FEWEST = 1024
"""Pixels that must have been kept for their colours to say anything."""
FLAT = 5.0
"""Spreads up to this are a plain area's, of the VAE's making; they say nothing of how colourful a drawing is to be."""
MOST_GAIN = 2.0
"""How much wider or narrower a channel's spread may become: a grey drawing has none that could be widened."""


def match_colors(drawn: Pixels, source: InitImage) -> Pixels:
    """A drawn picture (height, width, 3) in its source's colours, if the source asks for it."""
    if not source.color_correct:
        return drawn
    own, (height, width) = np.frombuffer(source.image.rgb, np.uint8).reshape(drawn.shape), drawn.shape[:2]
    kept = np.ones((height, width), bool) if source.mask is None else ~expand_mask(source.mask, height, width)
    if kept.sum() < FEWEST:
        return drawn
    seen, wanted = to_lab(drawn), to_lab(own)[kept]
    mean, spread = seen[kept].mean(axis=0), seen[kept].std(axis=0).clip(min=FLAT)
    gain = (wanted.std(axis=0).clip(min=FLAT) / spread).clip(1 / MOST_GAIN, MOST_GAIN)
    return _to_rgb((seen - mean) * gain + wanted.mean(axis=0))


def to_lab(pixels: Pixels) -> Floats:
    """sRGB bytes (..., 3) to CIELAB."""
    share = np.arange(256) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    relative = _multiply(TO_XYZ, linear.astype(np.float32)[pixels]) / WHITE
    root: Floats = np.cbrt(relative)
    bent = np.where(relative > EDGE**3, root, relative / (3 * EDGE**2) + 4 / 29)
    return _multiply(TO_LAB, bent) - DARKEST


def _to_rgb(colours: Floats) -> Pixels:
    """CIELAB to sRGB bytes, clipped to what they can show."""
    bent = _multiply(TO_LAB_BACK, colours + DARKEST)
    relative = np.where(bent > EDGE, bent**3, 3 * EDGE**2 * (bent - 4 / 29))
    linear = _multiply(TO_XYZ_BACK, relative * WHITE).clip(0, 1)
    share = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (share * 255).round().astype(np.uint8)


def _multiply(matrix: Floats, colours: Floats) -> Floats:
    """What a matrix makes of colours (..., 3)."""
    return cast("Floats", colours @ matrix.T)
