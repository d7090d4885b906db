"""Prediction types: conversions from the network's output to x0, and the table between sigma and timestep.

All other modules use `x = x0 + sigma * noise` and denoised estimates x0. At `sigma = inf` the argument `x` is the unit
noise. Sources: Salimans & Ho 2022, appendix D (velocity); Karras et al. 2022, table 1 (scaling); Lin et al. 2023,
algorithm 1 (zero terminal SNR).
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

    from pipelines.weights.detect import Detection

TIE = 1e-9
"""Difference of two distances in log sigma below which they count as equal; entries are at least 0.003 apart."""
ToX0 = Callable[["Tensor", "Tensor", float], "Tensor"]
"""`to_x0(output, x, sigma)` returns the denoised estimate."""


def eps_to_x0(output: "Tensor", x: "Tensor", sigma: float) -> "Tensor":
    """Convert a noise prediction to x0; raise PipelineError where an infinite sigma leaves x0 undetermined."""
    if isinf(sigma):
        raise PipelineError(
            "a network that predicts eps has no estimate at infinite noise; use a finite sigma_max"
        )
    return x - sigma * output


def v_to_x0(output: "Tensor", x: "Tensor", sigma: float) -> "Tensor":
    """Convert a velocity prediction `v = alpha * noise - sigma_vp * x0` to x0."""
    if isinf(sigma):
        return -output
    return x / (sigma**2 + 1) - output * (sigma / sqrt(sigma**2 + 1))


PREDICTIONS: dict[str, ToX0] = {"eps": eps_to_x0, "v": v_to_x0, "edm_v": v_to_x0}
"""CosXL's `edm_v` is velocity with v's own sign; what differs is the noise table (`edm`)."""


def to_velocity(x0: "Tensor", x: "Tensor", sigma: float) -> "Tensor":
    """Return the velocity of an estimate; the inverse of `from_velocity`."""
    if isinf(sigma):
        return -x0
    return (x / (sigma**2 + 1) - x0) * (sqrt(sigma**2 + 1) / sigma)


def from_velocity(velocity: "Tensor", x: "Tensor", sigma: float) -> "Tensor":
    """Return the estimate of a velocity."""
    return v_to_x0(velocity, x, sigma)


def input_scale(sigma: float) -> float:
    """Return c_in, the factor that scales `x` to unit variance."""
    return 1.0 if isinf(sigma) else 1.0 / sqrt(sigma**2 + 1)


@dataclass(frozen=True, slots=True)
class NoiseTable:
    """The noise levels a network was trained on.

    Attributes:
        sigmas: rising with t; the last is `inf` under zero terminal SNR.
        sigma_max: the first sigma of a run at full strength.
        zsnr: whether the betas were rescaled to zero terminal SNR.
        is_continuous: whether the network was trained on all sigmas of the range, not on those of the table alone.
    """

    sigmas: tuple[float, ...]
    sigma_max: float
    zsnr: bool = False
    is_continuous: bool = False

    @property
    def sigma_min(self) -> float:
        """The smallest sigma of the table; most schedules end with it before their 0."""
        return self.sigmas[0]

    def sigma_at(self, t: float) -> float:
        """Return sigma at a possibly fractional index t, log-linear between entries."""
        low = min(floor(t), len(self.sigmas) - 2)
        share = t - low
        if share == 0.0:
            return self.sigmas[low]
        if share == 1.0 or isinf(self.sigmas[low + 1]):
            return self.sigmas[low + 1]
        return exp((1 - share) * log(self.sigmas[low]) + share * log(self.sigmas[low + 1]))

    def nearest_index(self, sigma: float) -> int:
        """Return the index of the entry nearest to sigma in log space, the lower one of two at the same distance.

        Schedules with an odd number of steps ask for the middle between two entries, where rounding alone would decide.
        """
        if isinf(sigma):
            return len(self.sigmas) - 1
        above = bisect_left(self.sigmas, sigma)
        if above == 0:
            return 0
        if above == len(self.sigmas) or isinf(self.sigmas[above]):
            return above - 1
        below = log(sigma) - log(self.sigmas[above - 1])
        return above - 1 if below <= log(self.sigmas[above]) - log(sigma) + TIE else above

    def fractional_index(self, sigma: float) -> float:
        """Return the fractional index of sigma, clamped to the table; the inverse of `sigma_at`."""
        above = min(max(bisect_left(self.sigmas, sigma), 1), len(self.sigmas) - 1)
        low, high = self.sigmas[above - 1], self.sigmas[above]
        if sigma <= low:
            return float(above - 1)
        if isinf(high):
            return float(above if isinf(sigma) else above - 1)
        return above - 1 + min(1.0, (log(sigma) - log(low)) / (log(high) - log(low)))

    def timestep(self, sigma: float) -> float:
        """Return the network's timestep input for sigma: the nearest index, or exactly `ln(sigma) / 4` (CosXL)."""
        return 0.25 * log(sigma) if self.is_continuous else float(self.nearest_index(sigma))

    def snap(self, sigma: float) -> float:
        """Return the sigma nearest to this one that the network was trained on."""
        return sigma if self.is_continuous else self.sigmas[self.nearest_index(sigma)]

    def with_sigma_max(self, sigma_max: float) -> "NoiseTable":
        """Return a table whose runs start at `sigma_max`.

        At or above the second last entry, `sigma_max` replaces the last entry (ComfyUI uses 4518.76 for infinity, the
        NAI paper 20000); below it, only the start of runs changes.
        """
        if sigma_max < self.sigmas[-2]:
            return replace(self, sigma_max=max(sigma_max, self.sigma_min))
        return replace(self, sigmas=(*self.sigmas[:-1], sigma_max), sigma_max=sigma_max)


def scaled_linear(zsnr: bool = False) -> NoiseTable:
    """Return the 1000 sigmas of Stable Diffusion's betas, optionally rescaled to zero terminal SNR."""
    first, last = sqrt(0.00085), sqrt(0.012)
    betas = ((first + (last - first) * k / 999) ** 2 for k in range(1000))
    roots = [sqrt(a) for a in accumulate((1 - beta for beta in betas), mul)]
    if zsnr:
        stretch = roots[0] / (roots[0] - roots[-1])
        roots = [(root - roots[-1]) * stretch for root in roots]
    sigmas = tuple(sqrt(1 - root**2) / root if root else inf for root in roots)
    return NoiseTable(sigmas, sigmas[-1], zsnr)


def edm(sigma_min: float = 0.002, sigma_max: float = 120.0) -> NoiseTable:
    """Return the range of a CosXL-class network, which its file names, as 1000 exponentially spaced entries."""
    ratio = log(sigma_max / sigma_min)
    inner = (sigma_min * exp(ratio * k / 999) for k in range(1, 999))
    return NoiseTable((sigma_min, *inner, sigma_max), sigma_max, is_continuous=True)


def build_noise_table(detection: "Detection", sigma_max: float | None = None) -> NoiseTable:
    """Return the noise table of a kind of network; `sigma_max` moves where its schedules start."""
    is_edm = detection.prediction == "edm_v"
    table = edm(*(detection.sigma_range or ())) if is_edm else scaled_linear(detection.zsnr)
    return table if sigma_max is None or isinf(sigma_max) else table.with_sigma_max(sigma_max)
