"""What the network's output means: functions from output to x0, and the table between sigma and t.

Everything above this module speaks in `x = x0 + sigma * noise` and sees denoised estimates only.
At `sigma = inf` the `x` handed in is the unit noise itself. Formulas: Salimans & Ho 2022, appendix D;
Karras et al. 2022, table 1; zero terminal SNR: Lin et al. 2023, algorithm 1.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from math import exp, floor, inf, isinf, log, sqrt
from operator import mul
from typing import TYPE_CHECKING

from pipelines.errors import PipelineError

if TYPE_CHECKING:
    from torch import Tensor

ToX0 = Callable[["Tensor", "Tensor", float], "Tensor"]


def eps_to_x0(output: "Tensor", x: "Tensor", sigma: float) -> "Tensor":
    """The output is the noise. It says nothing about x0 at infinite noise, so that raises."""
    if isinf(sigma):
        raise PipelineError("a noise-predicting network has no estimate at infinite noise")
    return x - sigma * output


def v_to_x0(output: "Tensor", x: "Tensor", sigma: float) -> "Tensor":
    """The output is the velocity, `v = alpha * noise - sigma_vp * x0`."""
    if isinf(sigma):
        return -output
    return x / (sigma**2 + 1) - output * (sigma / sqrt(sigma**2 + 1))


def edm_v_to_x0(output: "Tensor", x: "Tensor", sigma: float) -> "Tensor":
    """The velocity with the sign that CosXL-class networks were trained with."""
    if isinf(sigma):
        return output
    return x / (sigma**2 + 1) + output * (sigma / sqrt(sigma**2 + 1))


PREDICTIONS: dict[str, ToX0] = {"eps": eps_to_x0, "v": v_to_x0, "edm_v": edm_v_to_x0}


def to_velocity(x0: "Tensor", x: "Tensor", sigma: float) -> "Tensor":
    """The velocity that stands for this estimate."""
    if isinf(sigma):
        return -x0
    return (x / (sigma**2 + 1) - x0) * (sqrt(sigma**2 + 1) / sigma)


def from_velocity(velocity: "Tensor", x: "Tensor", sigma: float) -> "Tensor":
    """The estimate that this velocity stands for."""
    return v_to_x0(velocity, x, sigma)


def input_scale(sigma: float) -> float:
    """c_in: what brings `x` to the network's unit variance."""
    return 1.0 if isinf(sigma) else 1.0 / sqrt(sigma**2 + 1)


@dataclass(frozen=True, slots=True)
class NoiseTable:
    """The sigmas a network was trained on, rising with t; the last is `inf` under zero terminal SNR.

    `timesteps` is what the network is told for each entry, `highest` where every ladder starts.
    """

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]
    highest: float
    zsnr: bool = False

    @property
    def lowest(self) -> float:
        """The smallest noise the network knows, where every ladder ends before its zero."""
        return self.sigmas[0]

    def sigma(self, t: float) -> float:
        """Sigma at a possibly fractional index t, log-linear between entries."""
        low = min(floor(t), len(self.sigmas) - 2)
        share = t - low
        if share == 0.0:
            return self.sigmas[low]
        if share == 1.0 or isinf(self.sigmas[low + 1]):
            return self.sigmas[low + 1]
        return exp((1 - share) * log(self.sigmas[low]) + share * log(self.sigmas[low + 1]))

    def index(self, sigma: float) -> int:
        """The entry nearest to sigma in log space."""
        if isinf(sigma):
            return len(self.sigmas) - 1
        above = bisect_left(self.sigmas, sigma)
        if above == 0:
            return 0
        if above == len(self.sigmas) or isinf(self.sigmas[above]):
            return above - 1
        below = log(sigma) - log(self.sigmas[above - 1])
        return above - 1 if below <= log(self.sigmas[above]) - log(sigma) else above

    def position(self, sigma: float) -> float:
        """The fractional index of sigma: the inverse of `sigma()`, clamped to the table."""
        at = min(max(bisect_left(self.sigmas, sigma), 1), len(self.sigmas) - 1)
        low, high = self.sigmas[at - 1], self.sigmas[at]
        if sigma <= low:
            return float(at - 1)
        if isinf(high):
            return float(at if isinf(sigma) else at - 1)
        return at - 1 + min(1.0, (log(sigma) - log(low)) / (log(high) - log(low)))

    def time(self, sigma: float) -> float:
        """What the network is told at this sigma."""
        return self.timesteps[self.index(sigma)]

    def starting_at(self, sigma_max: float) -> "NoiseTable":
        """The same table with its ladders starting elsewhere.

        At or above the last entry but one, `sigma_max` takes the last entry's place (4518.76 is ComfyUI's
        stand-in for infinity, 20000 the NAI paper's); below, the table stays and only the start moves.
        """
        if sigma_max < self.sigmas[-2]:
            return replace(self, highest=max(sigma_max, self.lowest))
        return replace(self, sigmas=(*self.sigmas[:-1], sigma_max), highest=sigma_max)


def scaled_linear(zsnr: bool = False) -> NoiseTable:
    """The 1000 sigmas of Stable Diffusion's betas, optionally rescaled to zero terminal SNR."""
    first, last = sqrt(0.00085), sqrt(0.012)
    betas = ((first + (last - first) * k / 999) ** 2 for k in range(1000))
    roots = [sqrt(a) for a in accumulate((1 - beta for beta in betas), mul)]
    if zsnr:
        stretch = roots[0] / (roots[0] - roots[-1])
        roots = [(root - roots[-1]) * stretch for root in roots]
    sigmas = tuple(sqrt(1 - root**2) / root if root else inf for root in roots)
    return NoiseTable(sigmas, tuple(float(t) for t in range(1000)), sigmas[-1], zsnr)


def edm(sigma_min: float = 0.002, sigma_max: float = 120.0) -> NoiseTable:
    """CosXL's continuous range as 1000 exponential entries; the network is told `ln(sigma) / 4`."""
    ratio = log(sigma_max / sigma_min)
    sigmas = tuple(sigma_min * exp(ratio * k / 999) for k in range(1000))
    return NoiseTable(sigmas, tuple(0.25 * log(sigma) for sigma in sigmas), sigma_max)
