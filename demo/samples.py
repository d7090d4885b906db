"""Drawings for the demo's image encoder to look at, each made once."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from demo.adapter import preprocess
from demo.scenes import Scene
from pipelines.types import Pixels, Size

REFERENCE_SIZES: tuple[Size, ...] = ((224, 224), (160, 224), (224, 160))


class SampleImages:
    """Pictures of scenes in one form or another.

    Args:
        seed: decides the forms, and what tags say nothing about.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._drawn: dict[Scene, Pixels] = {}

    def __call__(self, scenes: Sequence[Scene]) -> Tensor:
        """The scenes' pictures as the encoder takes them, (B, 3, 224, 224)."""
        return torch.stack([preprocess(self._picture(scene)) for scene in scenes])

    def _picture(self, scene: Scene) -> Pixels:
        if scene not in self._drawn:
            self._drawn[scene] = scene.draw(
                *REFERENCE_SIZES[int(self._rng.integers(len(REFERENCE_SIZES)))], self._rng
            )
        return self._drawn[scene]
