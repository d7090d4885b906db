"""SMEA and DYN: the early steps also look at the picture made smaller, where a network still sees the whole of it.

NAI publishes that several passes are interpolated on a sine and what they cost, nothing more. This is our reading,
which fits both: every early evaluation asks about a smaller copy too, and the estimate takes its low frequencies.

    x_low = r P x Q',  D' = D + w P' (D_low / r - P D Q') Q

P and Q keep the lowest frequencies of a cosine transform. Their rows are orthonormal, so the copy's noise is white
again and weaker by exactly the ratio r of the sides: it is a picture at the noise level r sigma, as the rule that
signal to noise goes with the square root of the area has it (NAI V3's paper, section 2.1).
"""

from dataclasses import dataclass
from math import cos, isinf, pi, sqrt

import torch
from torch import Tensor

from pipelines.types import Sigmas

HALF, THREE_QUARTERS = 1 / 2, 3 / 4
LARGE = 1_140_000
"""Pixels above which DYN's smaller copy has three quarters of the sides; NAI's old prices change there."""
ENDS = {"smea": 0.75, "dyn": 0.6}
"""The share of the steps by which the copy has faded out: what NAI's prices leave room for at these ratios."""

View = tuple[Tensor, float]
"""Latents and their noise level."""


@dataclass(frozen=True, slots=True)
class Smea:
    """The second look that the early evaluations of one image take.

    Attributes:
        rows, columns: P (low height, height) and Q (low width, width).
        end: the share of the steps by which it has faded out.
        sigmas: the run's ladder.
    """

    rows: Tensor
    columns: Tensor
    end: float
    sigmas: Sigmas

    @property
    def ratio(self) -> float:
        """The copy's sides over the picture's."""
        return sqrt(self.rows.shape[0] * self.columns.shape[0] / (self.rows.shape[1] * self.columns.shape[1]))

    def views(self, x: Tensor, sigma: float) -> tuple[View, ...]:
        """What is asked about: the latents (4, h, w), and while it counts their smaller copy."""
        if not self._weight(sigma):
            return ((x, sigma),)
        copy = self._smaller(x)
        return ((x, sigma), (copy, sigma) if isinf(sigma) else (self.ratio * copy, self.ratio * sigma))

    def merge(self, x0: Tensor, low: Tensor, sigma: float) -> Tensor:
        """The estimate, its low frequencies moved towards those of the copy's estimate."""
        change = low / self.ratio - self._smaller(x0)
        rows, columns = self.rows.to(change), self.columns.to(change)
        return x0 + self._weight(sigma) * (rows.mT @ change @ columns)

    def _smaller(self, x: Tensor) -> Tensor:
        return self.rows.to(x) @ x @ self.columns.to(x).mT

    def _weight(self, sigma: float) -> float:
        """From 1 in the first step down a squared cosine to 0."""
        progress = sum(rung > sigma for rung in self.sigmas[:-1]) / max(1, len(self.sigmas) - 2)
        return cos(pi * progress / (2 * self.end)) ** 2 if progress < self.end else 0.0


def make_smea(smea: str, latent_size: tuple[int, int], sigmas: Sigmas, device: torch.device) -> Smea | None:
    """How SMEA draws latents of this height and width.

    Args:
        smea: "smea", "dyn", or "off", which takes no second look.
    """
    if smea == "off":
        return None
    large = latent_size[0] * latent_size[1] * 64 > LARGE
    ratio = THREE_QUARTERS if smea == "dyn" and large else HALF
    rows, columns = (
        low_frequency_basis(round(ratio * side), side).float().to(device) for side in latent_size
    )
    return Smea(rows, columns, ENDS[smea], sigmas)


def low_frequency_basis(few: int, many: int) -> Tensor:
    """The lowest frequencies of `many` places as `few` places, (few, many) with orthonormal rows."""
    return _dct_basis(few).mT @ _dct_basis(many)[:few]


def _dct_basis(size: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II) of so many places, a frequency in each row."""
    places = torch.arange(size, dtype=torch.float64)
    waves = torch.cos(pi * places[:, None] * (places + 0.5) / size) * sqrt(2 / size)
    waves[0] /= sqrt(2)
    return waves
