"""`color_correct`: give a generated image the colors of its init image.

NAI has not published its method. This one gives each CIELAB channel the mean and standard deviation it has in the
init image (Reinhard et al. 2001), measured over the kept pixels: all in img2img, those outside the mask in infill.
"""

from typing import cast

import numpy as np

from pipelines.image.overlay import expand_mask
from pipelines.job import InitImage
from pipelines.types import Pixels

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def _matrix(rows: list[list[float]]) -> Floats:
    return np.array(rows, np.float32)


RGB_TO_XYZ = _matrix(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
)
"""Linear sRGB to CIE XYZ under D65 (IEC 61966-2-1)."""
XYZ_TO_RGB = cast("Floats", np.linalg.inv(RGB_TO_XYZ))
WHITE_POINT = RGB_TO_XYZ.sum(axis=1)
XYZ_TO_LAB = _matrix([[0, 116, 0], [500, -500, 0], [0, 200, -200]])
"""Cube roots of relative XYZ to CIELAB plus LAB_OFFSET."""
LAB_TO_XYZ = cast("Floats", np.linalg.inv(XYZ_TO_LAB))
LAB_OFFSET = np.array([16, 0, 0], np.float32)
LINEAR_BELOW = 6 / 29
"""Cube root below which CIELAB uses a straight line instead."""
MIN_KEPT_PIXELS = 1024
"""With fewer kept pixels than this the image is left unchanged: they are too few to measure colors."""
MIN_DEVIATION = 5.0
"""Deviations up to this come from the VAE in flat areas and do not tell how colorful the image should be."""
MAX_GAIN = 2.0
"""Limit, up or down, on scaling a channel's deviation: a gray image has no color variation to widen."""


def match_colors(pixels: Pixels, init_image: InitImage) -> Pixels:
    """Return a generated image (height, width, 3) in its init image's colors, or unchanged without `color_correct`."""
    if not init_image.color_correct:
        return pixels
    height, width = pixels.shape[:2]
    original = np.frombuffer(init_image.image.rgb, np.uint8).reshape(pixels.shape)
    mask = init_image.mask
    kept = np.ones((height, width), bool) if mask is None else ~expand_mask(mask, height, width)
    if kept.sum() < MIN_KEPT_PIXELS:
        return pixels
    lab, target = to_lab(pixels), to_lab(original)[kept]
    mean, deviation = lab[kept].mean(axis=0), lab[kept].std(axis=0).clip(min=MIN_DEVIATION)
    gain = (target.std(axis=0).clip(min=MIN_DEVIATION) / deviation).clip(1 / MAX_GAIN, MAX_GAIN)
    return to_rgb((lab - mean) * gain + target.mean(axis=0))


def to_lab(pixels: Pixels) -> Floats:
    """Convert sRGB bytes (..., 3) to CIELAB."""
    encoded = np.arange(256) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    relative = _multiply(RGB_TO_XYZ, linear.astype(np.float32)[pixels]) / WHITE_POINT
    cube_root: Floats = np.cbrt(relative)
    roots = np.where(relative > LINEAR_BELOW**3, cube_root, relative / (3 * LINEAR_BELOW**2) + 4 / 29)
    return _multiply(XYZ_TO_LAB, roots) - LAB_OFFSET


def to_rgb(lab: Floats) -> Pixels:
    """Convert CIELAB (..., 3) to sRGB bytes, clipped to the sRGB gamut."""
    roots = _multiply(LAB_TO_XYZ, lab + LAB_OFFSET)
    relative = np.where(roots > LINEAR_BELOW, roots**3, 3 * LINEAR_BELOW**2 * (roots - 4 / 29))
    linear = _multiply(XYZ_TO_RGB, relative * WHITE_POINT).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (encoded * 255).round().astype(np.uint8)


def _multiply(matrix: Floats, colors: Floats) -> Floats:
    """Multiply each color of (..., 3) by a 3x3 matrix."""
    return cast("Floats", colors @ matrix.T)
