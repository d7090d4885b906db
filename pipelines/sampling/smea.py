"""SMEA and DYN: the early steps also estimate a low-resolution copy, on which the network sees the entire image.

NAI has published that several passes are interpolated on a sine, and what they cost. This reading fits both: each early
evaluation also estimates a low-resolution copy, and the full-resolution estimate takes its low frequencies.

    x_low = r P x Q',  D' = D + w P' (D_low / r - P D Q') Q

P and Q keep the lowest frequencies of a cosine transform. Their rows are orthonormal, so the copy's noise is white
and weaker by exactly the ratio r of the sides. The copy is therefore an image at noise level r sigma, which agrees
with the rule that signal to noise grows with the square root of the area (NAI V3's paper, section 2.1).
"""

from dataclasses import dataclass
from math import cos, isinf, pi, sqrt

import torch
from torch import Tensor

from pipelines.types import NoisyLatents, Sigmas

DYN_LARGE_AREA = 1_140_000
"""Pixels above which DYN's copy has three quarters of the sides; NAI's old prices change there."""
FADE_ENDS = {"smea": 0.75, "dyn": 0.6}
"""The share of the steps after which the copy has no weight; derived from NAI's prices and these ratios."""


@dataclass(frozen=True, slots=True)
class Smea:
    """The low-resolution evaluations of one image.

    Attributes:
        rows, columns: P (low height, height) and Q (low width, width).
        fade_end: the share of the steps after which the copy has no weight.
    """

    rows: Tensor
    columns: Tensor
    fade_end: float
    sigmas: Sigmas

    @property
    def ratio(self) -> float:
        """The ratio r of the copy's sides to the image's."""
        return sqrt(self.rows.shape[0] * self.columns.shape[0] / (self.rows.shape[1] * self.columns.shape[1]))

    def make_views(self, x: Tensor, sigma: float) -> tuple[NoisyLatents, ...]:
        """Return the latents (4, h, w) and, where it has weight, their low-resolution copy."""
        if not self._weight(sigma):
            return ((x, sigma),)
        copy = self._downscale(x)
        return ((x, sigma), (copy, sigma) if isinf(sigma) else (self.ratio * copy, self.ratio * sigma))

    def merge(self, x0: Tensor, low: Tensor, sigma: float) -> Tensor:
        """Return the estimate x0 with its low frequencies moved towards those of the copy's estimate `low`."""
        change = low / self.ratio - self._downscale(x0)
        rows, columns = self.rows.to(change), self.columns.to(change)
        return x0 + self._weight(sigma) * (rows.mT @ change @ columns)

    def _downscale(self, x: Tensor) -> Tensor:
        return self.rows.to(x) @ x @ self.columns.to(x).mT

    def _weight(self, sigma: float) -> float:
        """Return the copy's weight w: a squared cosine from 1 in the first step to 0."""
        progress = sum(step > sigma for step in self.sigmas[:-1]) / max(1, len(self.sigmas) - 2)
        return cos(pi * progress / (2 * self.fade_end)) ** 2 if progress < self.fade_end else 0.0


def make_smea(mode: str, latent_size: tuple[int, int], sigmas: Sigmas, device: torch.device) -> Smea | None:
    """Return SMEA in mode "smea" or "dyn" for latents of this height and width, or None in mode "off"."""
    if mode == "off":
        return None
    large = latent_size[0] * latent_size[1] * 64 > DYN_LARGE_AREA
    ratio = 3 / 4 if mode == "dyn" and large else 1 / 2
    rows, columns = (low_frequency_basis(round(ratio * n), n).float().to(device) for n in latent_size)
    return Smea(rows, columns, FADE_ENDS[mode], sigmas)


def low_frequency_basis(low_size: int, size: int) -> Tensor:
    """Return the downscaling matrix (low_size, size) that keeps the lowest frequencies; its rows are orthonormal."""
    return _dct_basis(low_size).mT @ _dct_basis(size)[:low_size]


def _dct_basis(size: int) -> Tensor:
    """Return the orthonormal DCT-II matrix (size, size), one frequency in each row."""
    indices = torch.arange(size, dtype=torch.float64)
    waves = torch.cos(pi * indices[:, None] * (indices + 0.5) / size) * sqrt(2 / size)
    waves[0] /= sqrt(2)
    return waves
