"""What the demo's networks are trained for: velocities on the zero-terminal-SNR table (Lin et al. 2023).

Samples are weighted by min-SNR (Hang et al. 2023) with a floor, which keeps the steps of pure noise in play.
"""

from collections.abc import Callable
from math import isinf, sqrt

import numpy as np
import torch
from torch import Tensor

from pipelines.sampling.prediction import scaled_linear

GAMMA, FLOOR = 5.0, 0.15
PURE_NOISE_SHARE = 0.06
"""How many of the samples are at infinite noise."""
COMPOSITION_FLOOR = 0.5
"""The floor where a training dwells on composition."""
COMPOSITION_TIME = 400
"""The time below which what is in a picture, faces too, can be seen through the noise."""

Predict = Callable[[Tensor, Tensor], Tensor]
"""Noisy latents (B, 4, h, w) and times (B,) to velocities of the latents' shape."""


class Objective:
    """The error of a network that predicts velocities.

    Args:
        dwelling: the share of samples that are only taken in more noise than DECIDED, to learn composition.
    """

    def __init__(self, high_noise_share: float = 0.0) -> None:
        self._floor, self._dwelling = COMPOSITION_FLOOR if high_noise_share else FLOOR, high_noise_share
        sigmas = scaled_linear(zsnr=True).sigmas
        self._alphas = torch.tensor([0.0 if isinf(sigma) else 1 / sqrt(sigma**2 + 1) for sigma in sigmas])

    def compute(self, predict: Predict, clean: Tensor, rng: np.random.Generator) -> Tensor:
        """Noise clean latents (B, 4, h, w) to random times and weigh what is predicted wrongly."""
        lowest = np.where(rng.random(len(clean)) < self._dwelling, COMPOSITION_TIME, 0)
        times = torch.from_numpy(rng.integers(lowest, len(self._alphas)))
        times[torch.from_numpy(rng.random(len(clean)) < PURE_NOISE_SHARE)] = len(self._alphas) - 1
        alpha = self._alphas[times][:, None, None, None]
        sigma = (1 - alpha.square()).sqrt()
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
        velocity = predict(alpha * clean + sigma * noise, times)
        error = (velocity - (alpha * noise - sigma * clean)).square().mean(dim=(1, 2, 3))
        ratio = (alpha / sigma).square().flatten()
        weight = (ratio.clamp(max=GAMMA) / (ratio + 1)).clamp(min=self._floor)
        return (weight * error).mean()
