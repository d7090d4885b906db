"""An image's random numbers: one CPU generator per image, drawn from in a fixed order.

Image i of a request with seed s has seed s + i. Its draws, in order: the initial noise; for samplers with eta > 0 on
an infinite schedule, the fresh noise of the first step; one draw for each step that adds noise, unless step noise
comes from a Brownian tree of the same seed (torchsde). The tree's path depends on the noise table alone, so it stays
the same when the number of steps changes. Everything is drawn in float32 on the CPU and then moved, so a seed gives
the same noise on every device.
"""

from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from math import isinf, sqrt
from typing import cast

import torch
from torch import Tensor

from pipelines.job import SEED_MODULUS
from pipelines.sampling.prediction import NoiseTable
from pipelines.sampling.samplers import Sampler
from pipelines.types import Noise, Sigmas


@dataclass(frozen=True, slots=True)
class ImageNoise:
    """All the noise of one image, of unit variance.

    `renewal` is the fresh noise of the step from infinite noise, or None where that step adds none.
    """

    initial: Tensor
    renewal: Tensor | None
    step: Noise


def make_image_noise(
    seed: int,
    shape: tuple[int, ...],
    sampler: Sampler,
    sigmas: Sigmas,
    table: NoiseTable,
    brownian: bool,
    executor: Executor | None = None,
    device: torch.device | None = None,
) -> ImageNoise:
    """Seed a generator, draw the first noise and set up the step noise.

    Args:
        shape: of one image's latents, (channels, height, width).
        sigmas: all sigmas of the run, including an infinite first one.
        brownian: take step noise from a Brownian tree.
        executor: a single worker that draws each step's noise while the device works on the step before.
    """
    generator = torch.Generator().manual_seed(seed % SEED_MODULUS)

    def draw(*_: float) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    initial = draw()
    starts_infinite = isinf(sigmas[0])
    renewal = draw() if starts_infinite and sampler.eta and sigmas[1] else None
    step = make_brownian_noise(seed, shape, *brownian_bounds(table), device) if brownian else draw
    if executor is not None:
        step = prefetch(step, list_noise_calls(sampler, sigmas[1:] if starts_infinite else sigmas), executor)
    return ImageNoise(initial, renewal, step)


def brownian_bounds(table: NoiseTable) -> tuple[float, float]:
    """Return the lowest and highest sigma of the Brownian path; they do not depend on the number of steps."""
    highest = table.sigmas[-2] if isinf(table.sigma_max) else max(table.sigmas[-2], table.sigma_max)
    return table.sigma_min / 2, 2 * highest


def make_brownian_noise(
    seed: int, shape: tuple[int, ...], low: float, high: float, device: torch.device | None = None
) -> Noise:
    """Return a Brownian path's increments over sigma at unit variance (k-diffusion, BrownianTreeNoiseSampler)."""
    from torchsde import BrownianTree  # pyright: ignore[reportMissingTypeStubs]

    tree = BrownianTree(t0=low, w0=torch.zeros(shape), t1=high, entropy=seed % SEED_MODULUS)

    def noise(sigma: float, target: float) -> Tensor:
        increment = cast("Tensor", tree(target, sigma))
        return (increment / -sqrt(sigma - target)).to(device)

    return noise


def prefetch(noise: Noise, calls: Sequence[tuple[float, float]], executor: Executor) -> Noise:
    """Return the same noise, with each draw started when the one before is taken.

    The result asserts that it is called with `calls`, the arguments of all calls, in order.
    """
    remaining = iter(calls)

    def start_next() -> tuple[tuple[float, float], Future[Tensor]] | None:
        call = next(remaining, None)
        return None if call is None else (call, executor.submit(noise, *call))

    pending = start_next()

    def take(sigma: float, target: float) -> Tensor:
        nonlocal pending
        assert pending is not None
        assert pending[0] == (sigma, target), "noise was requested out of order"
        result = pending[1].result()
        pending = start_next()
        return result

    return take


def list_noise_calls(sampler: Sampler, sigmas: Sigmas) -> list[tuple[float, float]]:
    """Return the arguments of a run's noise calls, in order, by running the sampler on a single zero."""
    calls: list[tuple[float, float]] = []
    if not sampler.eta or len(sigmas) < 2:
        return calls
    zero = torch.zeros(())

    def record(sigma: float, target: float) -> Tensor:
        calls.append((sigma, target))
        return zero

    run = sampler(zero, sigmas, record)
    try:
        next(run)
        while True:
            run.send(zero)
    except StopIteration:
        return calls
