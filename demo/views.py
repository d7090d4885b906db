"""How a scene came into its picture, which SDXL is told by its size ids: whole, cut from a larger one, or scaled up.

Large pictures are learned in all three ways, so that the ids mean here what they mean for SDXL (Podell et al. 2023,
section 2.2).
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from demo.scenes import Scene
from pipelines.types import Pixels, Size

MIN_AREA = 400 * 400
PERIOD = 6
"""One in so many large pictures is not seen whole and sharp."""


@dataclass(frozen=True, slots=True)
class View:
    """What of a drawing of size `original` a picture of `size` shows: from `corner` (left, top), or all, enlarged."""

    size: Size
    original: Size
    corner: tuple[int, int] = (0, 0)

    def size_ids(self) -> tuple[int, ...]:
        """SDXL's six: original height and width, top and left of the cut, the picture's height and width."""
        return *reversed(self.original), *reversed(self.corner), *reversed(self.size)

    def draw(self, scene: Scene, rng: np.random.Generator) -> Pixels:
        """Draw a scene so."""
        drawn = scene.draw(*self.original, rng)
        if self.original[0] < self.size[0]:
            return np.asarray(Image.fromarray(drawn).resize(self.size, Image.Resampling.BICUBIC))
        (left, top), (width, height) = self.corner, self.size
        return drawn[top : top + height, left : left + width]


def choose_view(size: Size, number: int) -> View:
    """The view of a scene by its number, always the same."""
    width, height = size
    if width * height < MIN_AREA or number % PERIOD:
        return View(size, size)
    rng = np.random.default_rng([*size, number, 1])
    factor = rng.uniform(0.18, 0.4) if rng.random() < 0.5 else rng.uniform(1.25, 1.6)
    original = round(width * factor), round(height * factor)
    if factor < 1:
        return View(size, original)
    corner = int(rng.integers(original[0] - width + 1)), int(rng.integers(original[1] - height + 1))
    return View(size, original, corner)
