"""What stays of a picture while a part of it is drawn anew: the two ways of inpainting.

An inpainting network is shown the mask and the picture without what the mask hides (Rombach et al. 2022; nine
channels). An ordinary one is asked about the picture itself outside the mask, noised as far as the rest is, with the
same noise in every step (ComfyUI's way).
"""

from dataclasses import dataclass
from math import isinf

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pipelines.types import Sigmas

LEAST = 1 / 255
"""What a mask's bytes can say least of a change."""


@dataclass(frozen=True, slots=True)
class LatentBlend:
    """A picture that an ordinary network may change in places.

    Attributes:
        latents: the picture's, (4, h, w).
        noise: the unit noise the image starts with, of the same shape.
        change: (1, h, w), from 0, which stays, to 1; values between give way as late in the run as they are low
            (Levin & Fried 2023).
        sigmas: the run's ladder.
    """

    latents: Tensor
    noise: Tensor
    mask: Tensor
    sigmas: Sigmas

    def blend_input(self, x: Tensor, sigma: float) -> Tensor:
        """What the network is asked about: outside, the picture under its own noise."""
        if isinf(sigma):
            return x  # the unit noise itself, and of the picture nothing is left in it
        return torch.where(self._open(sigma), x, self.latents + sigma * self.noise)

    def blend_estimate(self, x0: Tensor, sigma: float) -> Tensor:
        """The estimate, with the picture outside."""
        return torch.where(self._open(sigma), x0, self.latents)

    def blend_result(self, x: Tensor) -> Tensor:
        """The end of a run, with the picture where nothing may change."""
        return torch.where(self.mask >= LEAST, x, self.latents)

    def _open(self, sigma: float) -> Tensor:
        """Where the picture may change by now."""
        done = sum(rung > sigma for rung in self.sigmas) / (len(self.sigmas) - 1)
        return self.mask >= max(1 - done, LEAST)


def erase_masked(picture: Tensor, change: Tensor) -> Tensor:
    """A picture (3, 8h, 8w) in [-1, 1] with mid-grey wherever the mask (1, h, w) is at least a half."""
    return picture * (interpolate(change[None], scale_factor=8, mode="nearest")[0] < 0.5)


def build_inpaint_channels(change: Tensor, latents: Tensor) -> Tensor:
    """What an inpainting network is shown: the mask, binary, and the latents of the hidden picture, (5, h, w)."""
    return torch.cat([(change >= 0.5).to(latents), latents])
