"""Fits an image of any size to a size that the model can draw, and back, without changing its proportions.

As on NAI's page the image is enlarged to about a million pixels and shrunk to at most 3,145,728. Where its sides are no
multiples of 32 then, its last rows and columns are repeated. The result is cut and resized to the image's own size.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from PIL import Image

from pipelines.types import Pixels, Size
from server.errors import Rejected
from server.request.schema import LARGEST_AREA

LEAST_AREA = 1_048_576
LONGEST_RATIO = 16
GRID, SMALLEST_SIDE = 32, 64


@dataclass(frozen=True, slots=True)
class Canvas:
    """Sizes as (width, height).

    Attributes:
        own: the image's.
        inner: the one at which it is redrawn.
        size: the latter with the repeated rows and columns.
    """

    own: Size
    inner: Size
    size: Size

    def place(self, image: Image.Image) -> Pixels:
        """Return the image at the size of the canvas."""
        resized = image if image.size == self.inner else image.resize(self.inner, Image.Resampling.LANCZOS)
        right, below = self.size[0] - self.inner[0], self.size[1] - self.inner[1]
        return np.pad(np.asarray(resized), ((0, below), (0, right), (0, 0)), "edge")

    def cut(self, pixels: Pixels) -> Pixels:
        """Return a picture on the canvas at the image's own size."""
        inner = np.ascontiguousarray(pixels[: self.inner[1], : self.inner[0]])
        if self.own == self.inner:
            return inner
        return np.asarray(Image.fromarray(inner).resize(self.own, Image.Resampling.LANCZOS))


def fit_canvas(own: Size, known_area: int) -> Canvas:
    """Return the canvas for an image; it is not enlarged beyond the area in pixels that the model knows.

    Raises:
        Rejected: one side is more than LONGEST_RATIO times as long as the other.
    """
    if max(own) > LONGEST_RATIO * min(own):
        reason = f"one side may be at most {LONGEST_RATIO} times as long as the other for this tool"
        raise Rejected("image", f"{own[0]} x {own[1]}: {reason}")
    area = own[0] * own[1]
    scale = max(1.0, sqrt(min(LEAST_AREA, known_area) / area))
    while True:
        inner = max(1, round(own[0] * scale)), max(1, round(own[1] * scale))
        size = _round_up(inner[0]), _round_up(inner[1])
        if size[0] * size[1] <= LARGEST_AREA:
            return Canvas(own, inner, size)
        scale *= 0.99


def _round_up(side: int) -> int:
    return max(SMALLEST_SIDE, -(-side // GRID) * GRID)
