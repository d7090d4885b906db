"""The two ways to inpaint: with an inpainting UNet, or with an ordinary one and a latent blend.

An inpainting UNet has nine input channels, among them the mask and the latents of the image with the masked part erased
(Rombach et al. 2022). An ordinary UNet gets the init image's latents outside the mask, noised to the current sigma with
the same noise at every step (ComfyUI's method).
"""

from dataclasses import dataclass
from math import isinf

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pipelines.types import Sigmas

MIN_MASK = 1 / 255  # the lowest non-zero value of a mask, whose values come from bytes


@dataclass(frozen=True, slots=True)
class LatentBlend:
    """Keeps an init image's latents outside the mask while an ordinary UNet runs.

    The lower a mask value between 0 and 1, the later in the run the latent may change (Levin & Fried 2023).
    """

    latents: Tensor  # the init image's, (4, h, w)
    noise: Tensor  # the unit noise that the run starts from, (4, h, w)
    mask: Tensor  # (1, h, w), from 0 (keep) to 1 (change)
    sigmas: Sigmas  # of the run

    def blend_input(self, x: Tensor, sigma: float) -> Tensor:
        """Return the UNet's input: `x` inside the mask, the init image noised to `sigma` outside."""
        if isinf(sigma):
            return x  # pure noise: the init image has no weight in it
        return torch.where(self._change_mask(sigma), x, self.latents + sigma * self.noise)

    def blend_estimate(self, x0: Tensor, sigma: float) -> Tensor:
        """Return the estimate inside the mask, the init image outside."""
        return torch.where(self._change_mask(sigma), x0, self.latents)

    def blend_result(self, x: Tensor) -> Tensor:
        """Return the run's final latents, with the init image wherever the mask is 0."""
        return torch.where(self.mask >= MIN_MASK, x, self.latents)

    def _change_mask(self, sigma: float) -> Tensor:
        """Boolean mask (1, h, w) of the latents that may change at `sigma`."""
        progress = sum(step_sigma > sigma for step_sigma in self.sigmas) / (len(self.sigmas) - 1)
        return self.mask >= max(1 - progress, MIN_MASK)


def erase_masked(image: Tensor, mask: Tensor) -> Tensor:
    """Return an image (3, 8h, 8w) in [-1, 1] with mid-gray where the mask (1, h, w) is at least 0.5."""
    return image * (interpolate(mask[None], scale_factor=8, mode="nearest")[0] < 0.5)


def build_inpaint_channels(mask: Tensor, erased_latents: Tensor) -> Tensor:
    """Return an inpainting UNet's extra channels (5, h, w): the binary mask, then the erased image's latents."""
    return torch.cat([(mask >= 0.5).to(erased_latents), erased_latents])
