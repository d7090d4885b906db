"""The training objective: predicting velocities on the zero-terminal-SNR noise table (Lin et al. 2023).

Samples are weighted by min-SNR (Hang et al. 2023) with a floor, so that those of pure noise count too.
"""

from collections.abc import Callable
from math import isinf, sqrt

import numpy as np
import torch
from torch import Tensor

from pipelines.sampling.prediction import scaled_linear

GAMMA, FLOOR = 5.0, 0.15
PURE_NOISE_SHARE = 0.06
"""Share of samples at infinite noise."""
COMPOSITION_FLOOR = 0.5
"""The floor of the weights with a `high_noise_share`."""
COMPOSITION_TIME = 400
"""The time below which the content of an image, faces included, is visible through the noise."""

Predict = Callable[[Tensor, Tensor], Tensor]
"""Predicts velocities from noisy latents (B, 4, h, w) and times (B,)."""


class Objective:
    """The weighted error of velocity predictions.

    Args:
        high_noise_share: Share of samples only taken at times from COMPOSITION_TIME on, to train composition.
    """

    def __init__(self, high_noise_share: float = 0.0) -> None:
        self._floor = COMPOSITION_FLOOR if high_noise_share else FLOOR
        self._high_noise_share = high_noise_share
        sigmas = scaled_linear(zsnr=True).sigmas
        self._alphas = torch.tensor([0.0 if isinf(sigma) else 1 / sqrt(sigma**2 + 1) for sigma in sigmas])

    def compute(self, predict: Predict, clean: Tensor, rng: np.random.Generator) -> Tensor:
        """Add noise of random times to clean latents (B, 4, h, w) and return the weighted error of the predictions."""
        start = np.where(rng.random(len(clean)) < self._high_noise_share, COMPOSITION_TIME, 0)
        times = torch.from_numpy(rng.integers(start, len(self._alphas)))
        times[torch.from_numpy(rng.random(len(clean)) < PURE_NOISE_SHARE)] = len(self._alphas) - 1
        alpha = self._alphas[times][:, None, None, None]
        sigma = (1 - alpha.square()).sqrt()
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
        velocity = predict(alpha * clean + sigma * noise, times)
        error = (velocity - (alpha * noise - sigma * clean)).square().mean(dim=(1, 2, 3))
        ratio = (alpha / sigma).square().flatten()
        weight = (ratio.clamp(max=GAMMA) / (ratio + 1)).clamp(min=self._floor)
        return (weight * error).mean()
