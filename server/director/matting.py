"""Cuts an image's subject out of its background by a matte: the opacity of each pixel, from 0 to 1.

At the edge of the matte a pixel's color is a mix with the background's. The subject's own color there is estimated from
the colors around it, in two rounds of blurs (Forte 2021, Approximate Fast Foreground Colour Estimation).
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipelines.types import Pixels
from server.director.network import Channels, ToolNetwork
from server.director.planes import Plane, ndimage
from server.picture.writer import Alpha

WIDE, NARROW = 90, 6
"""Radii in pixels of the two rounds."""
LEAST_CONTRAST = 0.1
"""Range of a network's output below which it is not stretched: nothing was found, or everything is subject."""


@dataclass(frozen=True, slots=True)
class CutOut:
    """An image's subject as NAI answers it; all three pictures have the matte as their alpha, and black where it is 0.

    Attributes:
        masked: the image's own colors.
        generated: the estimated colors of the subject alone.
        blend: the image's own colors where it is opaque, the estimated ones at its edge.
        alpha: the matte.
    """

    masked: Pixels
    generated: Pixels
    blend: Pixels
    alpha: Alpha


def cut_out(rgb: Pixels, network: ToolNetwork) -> CutOut:
    """Cut the subject of an image out by a matting network."""
    matte = read_matte(network.run(rgb), rgb.shape[1], rgb.shape[0])
    own, estimated = rgb.astype(np.float32), estimate_foreground(rgb, matte)
    blend = estimated + (own - estimated) * matte[..., None] ** 4
    alpha = (matte * 255).round().astype(np.uint8)
    pictures = (np.where(alpha[..., None] > 0, colors, 0) for colors in (own, estimated, blend))
    masked, generated, blended = (picture.round().clip(0, 255).astype(np.uint8) for picture in pictures)
    return CutOut(masked, generated, blended, alpha)


def read_matte(output: Channels, width: int, height: int) -> Plane:
    """Return a network's output as a matte of the image's size.

    Outputs beyond 0 to 1 are logits. As these networks are usually used, the lowest value becomes 0 and the highest 1.
    """
    matte = output[0]
    if matte.min() < -0.01 or matte.max() > 1.01:
        matte = 1 / (1 + np.exp(-matte.clip(-30, 30)))
    lowest, highest = float(matte.min()), float(matte.max())
    if highest - lowest >= LEAST_CONTRAST:
        matte = (matte - lowest) / (highest - lowest)
    resized = Image.fromarray(matte.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized, np.float32).clip(0, 1)


def estimate_foreground(rgb: Pixels, matte: Plane) -> Channels:
    """Return the subject's colors, 0 to 255, without the background's share where the matte is below 1."""
    image, alpha = rgb.astype(np.float32), matte[..., None]
    foreground, background = image, image
    for radius in (WIDE, NARROW):
        foreground, background = _average(foreground, alpha, radius), _average(background, 1 - alpha, radius)
        foreground = foreground + alpha * (image - alpha * foreground - (1 - alpha) * background)
        foreground = foreground.clip(0, 255)
    return foreground


def _average(colors: Channels, weights: Channels, radius: int) -> Channels:
    """Return the weighted mean of the colors in a square around each pixel."""
    size = (2 * radius + 1, 2 * radius + 1, 1)
    total = ndimage.uniform_filter(weights, size, mode="nearest")
    return ndimage.uniform_filter(colors * weights, size, mode="nearest") / (total + 1e-5)
