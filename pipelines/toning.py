"""`color_correct`: a drawn picture gets back the colours of the one it started from.

NAI doesn't say how. Ours gives each channel of CIELAB the mean and the spread it has in the source (Reinhard et al.
2001), measured where the picture was kept: everywhere in img2img, outside the mask in infill.
"""

from typing import cast

import numpy as np

from pipelines.darkroom import Pixels
from pipelines.job import Source
from pipelines.overlay import redrawn

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
)
"""Linear sRGB to CIE XYZ under D65 (IEC 61966-2-1)."""
WHITE = TO_XYZ.sum(axis=1)
TO_LAB = np.array([[0.0, 116.0, 0.0], [500.0, -500.0, 0.0], [0.0, 200.0, -200.0]])
DARKEST = np.array([16.0, 0.0, 0.0])
EDGE = 6 / 29
"""Where the cube root of CIELAB gives way to a line."""
FEWEST = 1024
"""Pixels that must have been kept for their colours to say anything."""


def toned(drawn: Pixels, source: Source) -> Pixels:
    """A drawn picture (height, width, 3) in its source's colours, if the source asks for it."""
    own = np.frombuffer(source.picture.rgb, np.uint8).reshape(drawn.shape)
    height, width = drawn.shape[:2]
    kept = np.ones((height, width), bool) if source.mask is None else ~redrawn(source.mask, height, width)
    if not source.color_correct or kept.sum() < FEWEST:
        return drawn
    lab, wanted = _lab(drawn), _lab(own)[kept]
    mean, spread = lab[kept].mean(axis=0), lab[kept].std(axis=0).clip(min=1e-3)
    return _rgb((lab - mean) * (wanted.std(axis=0) / spread) + wanted.mean(axis=0))


def _lab(pixels: Pixels) -> Floats:
    """sRGB bytes (..., 3) to CIELAB."""
    share = pixels / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    relative = _made(TO_XYZ, linear) / WHITE
    root: Floats = np.cbrt(relative)
    bent = np.where(relative > EDGE**3, root, relative / (3 * EDGE**2) + 4 / 29)
    return _made(TO_LAB, bent) - DARKEST


def _rgb(lab: Floats) -> Pixels:
    """CIELAB to sRGB bytes, clipped to what they can show."""
    bent = _solved(TO_LAB, lab + DARKEST)
    relative = np.where(bent > EDGE, bent**3, 3 * EDGE**2 * (bent - 4 / 29))
    linear = _solved(TO_XYZ, relative * WHITE).clip(0, 1)
    share = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (share * 255).round().astype(np.uint8)


def _made(matrix: Floats, colours: Floats) -> Floats:
    """What a matrix makes of colours (..., 3)."""
    return cast("Floats", colours @ matrix.T)


def _solved(matrix: Floats, colours: Floats) -> Floats:
    """What a matrix makes these colours (..., 3) of."""
    return cast("Floats", np.linalg.solve(matrix, colours.reshape(-1, 3).T).T.reshape(colours.shape))
