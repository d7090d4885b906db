"""Denoisers that are known exactly, and a driver for samplers: no network, no weights."""

from math import sqrt

import torch
from torch import Tensor

from pipelines.sampling.prediction import to_velocity


def run_sampler(sampling, denoiser):
    """Run a sampler to its end; the result and how many estimates it asked for."""
    asked = 0
    try:
        question = next(sampling)
        while True:
            asked += 1
            question = sampling.send(denoiser(*question))
    except StopIteration as finished:
        return finished.value, asked


def run_denoise(trajectory, network):
    """Run one image's `denoise` over a network of rows; its latents and every tuple of rows that was asked for."""
    asked = []
    try:
        rows = next(trajectory)
        while True:
            asked.append(rows)
            rows = trajectory.send([network(row) for row in rows])
    except StopIteration as finished:
        return finished.value, asked


def velocity_network(estimate):
    """The velocity network that stands for estimates of rows."""
    return lambda row: to_velocity(estimate(row), row.x, row.sigma)


def gaussian_denoiser(spread: float):
    """The ideal denoiser for data drawn from N(0, spread^2)."""
    return lambda x, sigma: x * (spread**2 / (spread**2 + sigma**2))


def solve_gaussian_ode(x: Tensor, start: float, end: float, spread: float) -> Tensor:
    """Where the exact ODE carries x for that data."""
    return x * sqrt((spread**2 + end**2) / (spread**2 + start**2))


CENTRES, SHARES, WIDTH = (-1.2, 0.3, 1.5), (0.3, 0.5, 0.2), 0.25


def mixture_denoiser(x: Tensor, sigma: float) -> Tensor:
    """The ideal denoiser for a mixture of three Gaussians, elementwise."""
    centres = torch.tensor(CENTRES, dtype=x.dtype)
    variance = WIDTH**2 + sigma**2
    logits = torch.tensor(SHARES, dtype=x.dtype).log() - (x[..., None] - centres) ** 2 / (2 * variance)
    estimates = (centres * sigma**2 + x[..., None] * WIDTH**2) / variance
    return (torch.softmax(logits, -1) * estimates).sum(-1)


def zero_noise(sigma: float, target: float) -> Tensor:
    """Noise that is not there."""
    return torch.zeros((), dtype=torch.float64)
