"""Exact denoisers in closed form, and drivers for samplers: no network, no weights."""

from math import sqrt

import torch
from torch import Tensor

from pipelines.sampling.prediction import to_velocity


def run_sampler(sampler, denoiser):
    """Run a sampler to its end; return its result and the number of evaluations."""
    evaluations = 0
    try:
        request = next(sampler)
        while True:
            evaluations += 1
            request = sampler.send(denoiser(*request))
    except StopIteration as stop:
        return stop.value, evaluations


def run_denoise(trajectory, network):
    """Run one image's `denoise` on a function of a row; return its latents and every tuple of rows it requested."""
    requests = []
    try:
        rows = next(trajectory)
        while True:
            requests.append(rows)
            rows = trajectory.send([network(row) for row in rows])
    except StopIteration as stop:
        return stop.value, requests


def velocity_network(estimate):
    """Return a network that predicts the velocity of `estimate(row)`."""
    return lambda row: to_velocity(estimate(row), row.x, row.sigma)


def gaussian_denoiser(spread: float):
    """Return the ideal denoiser for data with the distribution N(0, spread^2)."""
    return lambda x, sigma: x * (spread**2 / (spread**2 + sigma**2))


def solve_gaussian_ode(x: Tensor, start: float, end: float, spread: float) -> Tensor:
    """Return the exact ODE solution for that data at sigma `end`, from x at sigma `start`."""
    return x * sqrt((spread**2 + end**2) / (spread**2 + start**2))


CENTERS, SHARES, WIDTH = (-1.2, 0.3, 1.5), (0.3, 0.5, 0.2), 0.25


def mixture_denoiser(x: Tensor, sigma: float) -> Tensor:
    """Return the ideal estimate for data with a mixture of three Gaussians, elementwise."""
    centers = torch.tensor(CENTERS, dtype=x.dtype)
    variance = WIDTH**2 + sigma**2
    logits = torch.tensor(SHARES, dtype=x.dtype).log() - (x[..., None] - centers) ** 2 / (2 * variance)
    estimates = (centers * sigma**2 + x[..., None] * WIDTH**2) / variance
    return (torch.softmax(logits, -1) * estimates).sum(-1)


def zero_noise(sigma: float, target: float) -> Tensor:
    """Noise of amplitude zero."""
    return torch.zeros((), dtype=torch.float64)
