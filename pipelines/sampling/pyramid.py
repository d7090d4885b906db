"""Early steps ask about a smaller copy of the picture, while the noise hides all that the copy leaves out.

A network that is small, or has learned small pictures, sees such a copy whole and draws its lines steadily. The mean of
2 x 2 latents has half the noise, so a copy with half the sides is a picture at half the noise level, as the rule that
signal to noise goes with the root of the area has it (NAI V3's paper, section 2.1). Drawing the noisy part of a run
at less height and width is Jin et al. 2024's, "Pyramidal flow matching"; the noise between levels is not theirs, since
the sampler here keeps the whole picture and only the estimate is a copy's.
"""

from math import isinf

from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate


def downscale(x: Tensor, sigma: float, times: int) -> tuple[Tensor, float]:
    """Latents (4, h, w) under noise with their sides halved so often, and the noise level they are at then."""
    copy = average(x, times)
    return (copy * 2**times, sigma) if isinf(sigma) else (copy, sigma / 2**times)


def average(latents: Tensor, times: int) -> Tensor:
    """The means (..., h / 2**times, w / 2**times) of squares of latents."""
    return avg_pool2d(latents, 2**times)


def upscale(x0: Tensor, size: tuple[int, int]) -> Tensor:
    """A copy's estimate as one of the whole latents (4, h, w)."""
    return interpolate(x0[None], size=size, mode="bicubic", align_corners=False)[0]
