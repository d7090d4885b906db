"""Line drawings of an image by filters: inked lines, and a pencil sketch.

Lines are where the logarithm of a tone, blurred by a stroke's width, is darker than its surroundings (a difference of
Gaussians, as in XDoG, Winnemoeller 2012). The logarithm makes a line on a dark dress as strong as one on skin. Luma
and each color channel are filtered, so that areas of equal luma are separated too. Unlike XDoG nothing is filled.
"""

import numpy as np
from PIL import Image

from pipelines.types import Pixels
from server.director.planes import (
    Plane,
    blur,
    compute_luma,
    keep_strong_parts,
    measure_stroke,
    ndimage,
    split_channels,
    to_gray_pixels,
)

LUMA_FLOOR, CHANNEL_FLOOR = 0.08, 0.15
"""Tones below which differences count less; they hide compression noise in black areas."""
CHANNEL_WEIGHT = 0.6
SPECK = 60.0
"""Pixels at a stroke of 1 below which a separate mark is noise."""
HATCH_LENGTH, HATCH_WIDTH = 14.0, 0.8
"""Of the pencil's strokes, as sigmas at a stroke of 1."""


def draw_lineart(rgb: Pixels) -> Pixels:
    """Return black lines on white paper."""
    return to_gray_pixels(1 - find_ink(split_channels(rgb)))


def find_ink(channels: list[Plane], threshold: float = 0.03, least: float = 0.06, gain: float = 9.0) -> Plane:
    """Return how much ink each pixel gets, from 0 to 1.

    Args:
        threshold: the darkness, in the logarithm's units, from which a pixel is inked.
        least: the darkness that a connected line must reach somewhere.
        gain: ink by darkness above the threshold.
    """
    stroke = measure_stroke(*channels[0].shape)
    darkness = _measure_darkness(np.log(compute_luma(channels) + LUMA_FLOOR), stroke)
    for channel in channels:
        in_channel = _measure_darkness(np.log(channel + CHANNEL_FLOOR), stroke)
        np.maximum(darkness, CHANNEL_WEIGHT * in_channel, out=darkness)
    ink = ((darkness - threshold) * gain).clip(0, 1)
    ink *= keep_strong_parts(ink > 0, darkness, least, SPECK * stroke**2)
    return np.tanh(1.6 * ink) / np.float32(np.tanh(1.6))


def _measure_darkness(tones: Plane, stroke: float) -> Plane:
    """Return how much darker each pixel is than its surroundings, for fine lines and for broader ones."""
    fine, middle, broad = (blur(tones, scale * stroke) for scale in (1.0, 1.7, 3.4))
    return (middle - fine) + np.float32(0.6) * (broad - middle)


def draw_sketch(rgb: Pixels, seed: int = 0) -> Pixels:
    """Return a pencil sketch: soft lines of uneven pressure, and hatching where the image is dark."""
    channels = split_channels(rgb)
    height, width = channels[0].shape
    stroke, generator = measure_stroke(height, width), np.random.default_rng(seed)
    lines = _draw_pencil_lines(channels, stroke, generator)
    tone = _hatch(compute_luma(channels), stroke, generator)
    grain = blur(generator.standard_normal((height, width), np.float32), 0.7 * stroke)
    pencil = (lines + tone * (1 - lines)).clip(0, 1) * (1 + 0.16 * grain / max(float(grain.std()), 1e-6))
    return to_gray_pixels(1 - pencil)


def _draw_pencil_lines(channels: list[Plane], stroke: float, generator: np.random.Generator) -> Plane:
    height, width = channels[0].shape
    ink = find_ink(channels, threshold=0.02, least=0.05, gain=7.0)
    coarse = blur(generator.standard_normal((height // 8 + 2, width // 8 + 2), np.float32), 2.0)
    size, smooth = (width, height), Image.Resampling.BICUBIC
    pressure = np.asarray(Image.fromarray(coarse / max(float(coarse.std()), 1e-6)).resize(size, smooth))
    return (blur(ink, 0.7 * stroke) * (0.88 + 0.13 * pressure)).clip(0, 1) * np.float32(0.85)


def _hatch(luma: Plane, stroke: float, generator: np.random.Generator) -> Plane:
    """Return the pencil's tone where the image is darker than its lightest part: strokes, denser the darker it is."""
    soft = blur(luma, 2 * stroke)
    paper = max(float(np.percentile(soft[::4, ::4], 98)), 0.2)
    dark = (1 - soft / paper).clip(0, 1)
    gaps = _draw_strokes(luma.shape, stroke, generator)
    return ((1.1 * dark - 0.2 - 0.72 * gaps) * 2).clip(0, 1) * np.float32(0.5) + np.float32(0.1) * dark**2


def _draw_strokes(shape: tuple[int, int], stroke: float, generator: np.random.Generator) -> Plane:
    """Return a texture of slanted strokes with values evenly spread from 0 to 1: noise blurred downwards, sheared."""
    height, width = shape
    noise = generator.standard_normal((height, width), np.float32)
    noise = ndimage.gaussian_filter1d(noise, HATCH_LENGTH * stroke, axis=0, mode="wrap", truncate=2.5)
    noise = ndimage.gaussian_filter1d(noise, HATCH_WIDTH * stroke, axis=1, mode="wrap", truncate=3.0)
    columns = (np.arange(width)[None] + np.arange(height)[:, None] // 2) % width
    sheared = np.take_along_axis(noise, columns, axis=1)
    # the logistic function is within 1 % of the normal distribution's
    return 1 / (1 + np.exp(-1.702 * sheared / max(float(noise.std()), 1e-6)))
