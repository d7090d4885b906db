"""Pyramid: the early steps estimate a low-resolution copy, while the noise hides the detail the copy lacks.

A network that is small, or was trained on small images, sees the entire image in such a copy and draws steady lines.
The mean of 2 x 2 latents has half the noise, so a copy with half the sides is an image at half the noise level. This
agrees with the rule that signal to noise grows with the square root of the area (NAI V3's paper, section 2.1).
Running the noisy steps at low resolution follows Jin et al. 2024, "Pyramidal flow matching"; their noise between levels
is not used here, because the sampler keeps full-resolution latents and only the estimate is of low resolution.
"""

from math import isinf

from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate


def downscale(x: Tensor, sigma: float, times: int) -> tuple[Tensor, float]:
    """Return noisy latents (4, h, w) downscaled `times` times by 2, and their noise level."""
    copy = average(x, times)
    return (copy * 2**times, sigma) if isinf(sigma) else (copy, sigma / 2**times)


def average(latents: Tensor, times: int) -> Tensor:
    """Return the means of blocks of latents, (..., h / 2**times, w / 2**times)."""
    return avg_pool2d(latents, 2**times)


def upscale(x0: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a low-resolution estimate upscaled to (height, width) = `size`."""
    return interpolate(x0[None], size=size, mode="bicubic", align_corners=False)[0]
