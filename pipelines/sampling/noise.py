"""Where an image's randomness comes from: one CPU generator per image, drawn in one fixed order.

The order for an image of seed s (a request's image i has seed s + i): the initial noise; then, only for samplers
with eta > 0 on an infinite ladder, the noise that renews it after the first step; then one draw for each step
noise, unless these come from a Brownian tree of the same seed (torchsde; the path depends on the noise table
alone, so that changing the number of steps keeps it). Everything is float32 on the CPU and moved afterwards,
so that a seed means the same picture on every device.
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
    """All the noise one image will use; `renewal` is None where the first step needs none."""

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
    """Set up an image's noise.

    Args:
        seed: reduced to 32 bits.
        shape: of one image's latents, (channels, height, width).
        sigmas: the whole ladder, an infinite first rung included.
        brownian: take step noise from the tree.
        executor: a single worker that draws each step's noise while the device still works on the step before.
        device: where the noise is moved once it is drawn.
    """
    generator = torch.Generator().manual_seed(seed % SEED_MODULUS)

    def draw(*_: float) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    initial = draw()
    infinite = isinf(sigmas[0])
    renewal = draw() if infinite and sampler.eta and sigmas[1] else None
    step = brownian_noise(seed, shape, *brownian_bounds(table), device) if brownian else draw
    if executor is not None:
        step = prefetch(step, list_noise_calls(sampler, sigmas[1:] if infinite else sigmas), executor)
    return ImageNoise(initial, renewal, step)


def brownian_bounds(table: NoiseTable) -> tuple[float, float]:
    """The sigmas between which the Brownian path lives: the same for every number of steps."""
    top = table.sigmas[-2] if isinf(table.highest) else max(table.sigmas[-2], table.highest)
    return table.lowest / 2, 2 * top


def brownian_noise(
    seed: int, shape: tuple[int, ...], low: float, high: float, device: torch.device | None = None
) -> Noise:
    """Increments of one Brownian path over sigma, scaled to unit variance."""
    from torchsde import BrownianTree  # pyright: ignore[reportMissingTypeStubs]

    tree = BrownianTree(t0=low, w0=torch.zeros(shape), t1=high, entropy=seed % SEED_MODULUS)

    def noise(sigma: float, target: float) -> Tensor:
        increment = cast("Tensor", tree(target, sigma))
        return (increment / -sqrt(sigma - target)).to(device)

    return noise


def prefetch(noise: Noise, asked: Sequence[tuple[float, float]], executor: Executor) -> Noise:
    """The same noise, each draw started when the one before is taken.

    `asked` are the queries in the order in which they will come; any other query is our own mistake.
    """
    coming = iter(asked)

    def start() -> tuple[tuple[float, float], Future[Tensor]] | None:
        query = next(coming, None)
        return None if query is None else (query, executor.submit(noise, *query))

    waiting = start()

    def take(sigma: float, target: float) -> Tensor:
        nonlocal waiting
        assert waiting is not None
        assert waiting[0] == (sigma, target), "noise was asked for out of order"
        drawn = waiting[1].result()
        waiting = start()
        return drawn

    return take


def list_noise_calls(sampler: Sampler, sigmas: Sigmas) -> list[tuple[float, float]]:
    """The noise a run will ask for, in order: found by running the sampler over a single zero."""
    asked: list[tuple[float, float]] = []
    if not sampler.eta or len(sigmas) < 2:
        return asked
    zero = torch.zeros(())

    def record(sigma: float, target: float) -> Tensor:
        asked.append((sigma, target))
        return zero

    run = sampler(zero, sigmas, record)
    try:
        next(run)
        while True:
            run.send(zero)
    except StopIteration:
        return asked
