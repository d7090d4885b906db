"""Characters by place: in the region of each character its own prompt is drawn, elsewhere the base prompt.

The network is asked for each character's prompt as for the base prompt, and the estimates are blended under soft masks
around the characters' centers (Bar-Tal et al. 2023, "MultiDiffusion", with estimates instead of denoised latents).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

SPREAD = (0.1, 0.2)
"""Standard deviations of a mask, as shares of width and height: people are taller than wide.

Measured on the demo model: with .15 of the width, faces at the border of two regions blur.
"""
BASE_WEIGHT = 0.02
"""The base prompt's weight next to the masks' peaks of 1. It outweighs a mask from .28 of the width on."""


@dataclass(frozen=True, slots=True)
class Regions:
    """The regions of an image's characters.

    Attributes:
        centers: of the characters, (x, y) as shares of width and height.
        weights: of the base prompt and the characters, by the height and width of the latents they were needed for.
    """

    centers: tuple[tuple[float, float], ...]
    weights: dict[tuple[int, ...], Tensor] = field(
        default_factory=dict[tuple[int, ...], Tensor], compare=False
    )

    def blend(self, base: Tensor, estimates: Sequence[Tensor]) -> Tensor:
        """Return the estimates (4, h, w) of the base prompt and of each character's, blended under their masks."""
        size = tuple(base.shape[-2:])
        if size not in self.weights:
            self.weights[size] = self._weigh(base)
        weights = self.weights[size]
        return sum(
            (weight * estimate for weight, estimate in zip(weights[1:], estimates, strict=True)),
            weights[0] * base,
        )

    def _weigh(self, like: Tensor) -> Tensor:
        """Return the weights (1 + characters, h, w) of the base prompt and the characters; they sum to 1."""
        height, width = like.shape[-2:]
        rows, columns = (
            (torch.arange(side, device=like.device, dtype=like.dtype) + 0.5) / side
            for side in (height, width)
        )
        masks = [
            torch.exp(-0.5 * ((rows[:, None] - y) / SPREAD[1]) ** 2 - 0.5 * ((columns - x) / SPREAD[0]) ** 2)
            for x, y in self.centers
        ]
        weights = torch.stack([torch.full_like(masks[0], BASE_WEIGHT), *masks])
        return weights / weights.sum(0)
