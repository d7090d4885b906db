"""Images that the demo's image encoder is trained on, each drawn once."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from demo.adapter import preprocess
from demo.scenes import Scene
from pipelines.types import Pixels, Size

REFERENCE_SIZES: tuple[Size, ...] = ((224, 224), (160, 224), (224, 160))


class SampleImages:
    """Images of scenes at random sizes.

    Args:
        seed: Seed of the sizes and of everything that no tag describes.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._images: dict[Scene, Pixels] = {}

    def __call__(self, scenes: Sequence[Scene]) -> Tensor:
        """Return the preprocessed images of scenes (B, 3, 224, 224)."""
        return torch.stack([preprocess(self._draw(scene)) for scene in scenes])

    def _draw(self, scene: Scene) -> Pixels:
        if scene not in self._images:
            size = REFERENCE_SIZES[int(self._rng.integers(len(REFERENCE_SIZES)))]
            self._images[scene] = scene.draw(*size, self._rng)
        return self._images[scene]
