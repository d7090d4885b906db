"""How an image shows its drawing: at its own size, as a crop, or enlarged. SDXL's size ids describe it.

Large images are trained on in all three ways, so that the ids have the meaning they have for SDXL (Podell et al. 2023,
section 2.2).
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from demo.scenes import Scene
from pipelines.types import Pixels, Size

MIN_AREA = 400 * 400
"""Images with fewer pixels are always shown at their own size."""
PERIOD = 6
"""One in six large images is a crop or enlarged."""


@dataclass(frozen=True, slots=True)
class View:
    """An image of `size` made from a drawing of size `original`.

    A smaller drawing is enlarged; of a larger one the image is the crop at `corner` (left, top).
    """

    size: Size
    original: Size
    corner: tuple[int, int] = (0, 0)

    def size_ids(self) -> tuple[int, ...]:
        """Return SDXL's six: original height and width, top and left of the crop, image height and width."""
        return *reversed(self.original), *reversed(self.corner), *reversed(self.size)

    def draw(self, scene: Scene, rng: np.random.Generator) -> Pixels:
        """Return the image of a scene."""
        drawing = scene.draw(*self.original, rng)
        if self.original[0] < self.size[0]:
            return np.asarray(Image.fromarray(drawing).resize(self.size, Image.Resampling.BICUBIC))
        (left, top), (width, height) = self.corner, self.size
        return drawing[top : top + height, left : left + width]


def choose_view(size: Size, number: int) -> View:
    """Return the view of the scene with this number, the same one every time."""
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
