"""Samplers: coroutines that ask for denoised estimates and return the final latents.

Each yields `(x, sigma)`, is sent the estimate x0 of the same shape, and never knows who answers. `sigmas` is
a falling tuple of floats ending in 0; `noise(sigma, target)` is unit-variance noise shaped like `x`.
A sampler that evaluates twice in a step yields twice. The maths is elementwise, so `x` may be any tensor.
Sources: Karras et al. 2022 (euler, heun); k-diffusion (ancestral split, dpm_2, lms); Lu et al. 2022,
DPM-Solver++ (2s, 2m, sde); Liu et al. 2022 (plms). The two DPM-Solver drivers live in dpm_solver.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from itertools import pairwise
from math import exp, expm1, log, sqrt
from operator import add
from typing import TYPE_CHECKING

from pipelines.errors import UnknownName
from pipelines.sampling.dpm_solver import dpm_adaptive, dpm_fast
from pipelines.types import Noise, Sampling, Sigmas

if TYPE_CHECKING:
    from torch import Tensor


def move(x: "Tensor", x0: "Tensor", ratio: float) -> "Tensor":
    """Keep the estimate, shrink the distance to it: the exact ODE path when x0 is constant."""
    return x0 + (x - x0) * ratio


def ancestral(sigma: float, target: float, eta: float = 1.0) -> tuple[float, float]:
    """Split a step into a deterministic descent and the noise added after it: `(down, up)`."""
    up = min(target, eta * sqrt(target**2 * (sigma**2 - target**2) / sigma**2))
    return sqrt(target**2 - up**2), up


def euler(x: "Tensor", sigmas: Sigmas, noise: Noise) -> Sampling:
    """One estimate a step along the ODE."""
    for sigma, target in pairwise(sigmas):
        x0 = yield x, sigma
        x = move(x, x0, target / sigma)
    return x


def euler_ancestral(x: "Tensor", sigmas: Sigmas, noise: Noise, eta: float = 1.0) -> Sampling:
    """Euler to below the target, then noise back up to it."""
    for sigma, target in pairwise(sigmas):
        x0 = yield x, sigma
        down, up = ancestral(sigma, target, eta)
        x = move(x, x0, down / sigma)
        if up:
            x = x + up * noise(sigma, target)
    return x


def heun(x: "Tensor", sigmas: Sigmas, noise: Noise) -> Sampling:
    """Euler, then the average of the slopes at both ends."""
    for sigma, target in pairwise(sigmas):
        x0 = yield x, sigma
        guess = move(x, x0, target / sigma)
        if target:
            slope = (x - x0) / sigma
            x0 = yield guess, target
            guess = x + (slope + (guess - x0) / target) * ((target - sigma) / 2)
        x = guess
    return x


def dpm_2(x: "Tensor", sigmas: Sigmas, noise: Noise, eta: float = 0.0) -> Sampling:
    """The slope at the geometric middle carries the whole step; eta > 0 adds ancestral noise."""
    for sigma, target in pairwise(sigmas):
        x0 = yield x, sigma
        down, up = ancestral(sigma, target, eta)
        if not down:
            x = x0
            continue
        middle = sqrt(sigma * down)
        halfway = move(x, x0, middle / sigma)
        x0 = yield halfway, middle
        x = x + (halfway - x0) * ((down - sigma) / middle)
        if up:
            x = x + up * noise(sigma, target)
    return x


def lms(x: "Tensor", sigmas: Sigmas, noise: Noise, order: int = 4) -> Sampling:
    """Linear multistep: a polynomial through the last slopes, integrated exactly over the step."""
    slopes: list[Tensor] = []
    for step, (sigma, target) in enumerate(pairwise(sigmas)):
        x0 = yield x, sigma
        slopes = [(x - x0) / sigma, *slopes][:order]
        nodes = sigmas[step::-1][: len(slopes)]
        x = x + reduce(add, (_adams(nodes, k, sigma, target) * slope for k, slope in enumerate(slopes)))
    return x


def _adams(nodes: Sigmas, k: int, start: float, end: float) -> float:
    """The integral over [start, end] of the Lagrange polynomial that is 1 at node k (degree 3 at most)."""
    middle, half = (start + end) / 2, (end - start) / 2
    total = 0.0
    for point in (middle - half / sqrt(3), middle + half / sqrt(3)):  # two Gauss nodes: exact to degree 3
        value = 1.0
        for j, node in enumerate(nodes):
            if j != k:
                value *= (point - node) / (nodes[k] - node)
        total += value
    return total * half


def dpmpp_2s_ancestral(x: "Tensor", sigmas: Sigmas, noise: Noise, eta: float = 1.0) -> Sampling:
    """DPM-Solver++(2S) to below the target, then noise back up to it."""
    for sigma, target in pairwise(sigmas):
        x0 = yield x, sigma
        down, up = ancestral(sigma, target, eta)
        if not down:
            x = x0
            continue
        middle = sqrt(sigma * down)
        x0 = yield move(x, x0, middle / sigma), middle
        x = move(x, x0, down / sigma)
        if up:
            x = x + up * noise(sigma, target)
    return x


def dpmpp_2m(x: "Tensor", sigmas: Sigmas, noise: Noise) -> Sampling:
    """DPM-Solver++(2M): the last two estimates extrapolate to the middle of the step in log sigma."""
    before: tuple[float, Tensor] | None = None
    for sigma, target in pairwise(sigmas):
        x0 = yield x, sigma
        if before is None or not target:
            x = move(x, x0, target / sigma)
        else:
            ratio = log(before[0] / sigma) / log(sigma / target)
            x = move(x, x0 + (x0 - before[1]) / (2 * ratio), target / sigma)
        before = sigma, x0
    return x


def dpmpp_2m_sde(x: "Tensor", sigmas: Sigmas, noise: Noise, eta: float = 1.0) -> Sampling:
    """The stochastic DPM-Solver++(2M), midpoint form."""
    before: tuple[float, Tensor] | None = None
    for sigma, target in pairwise(sigmas):
        x0 = yield x, sigma
        if not target:
            return x0
        h = log(sigma / target)
        gain = -expm1(-h * (1 + eta))
        fresh = move(x, x0, 1 - gain)
        if before is not None:
            fresh = fresh + (x0 - before[1]) * (gain / 2 * h / log(before[0] / sigma))
        x = fresh + target * sqrt(-expm1(-2 * eta * h)) * noise(sigma, target)
        before = sigma, x0
    return x


def dpmpp_3m_sde(x: "Tensor", sigmas: Sigmas, noise: Noise, eta: float = 1.0) -> Sampling:
    """The stochastic DPM-Solver++ with up to three estimates; the divided differences are of log sigma."""
    past: list[tuple[float, Tensor]] = []
    for sigma, target in pairwise(sigmas):
        x0 = yield x, sigma
        if not target:
            return x0
        h = log(sigma / target)
        width = h * (1 + eta)
        x = move(x, x0, exp(-width))
        past = [(sigma, x0), *past][:3]
        if len(past) > 1:
            x = x + _multistep(past, h, width)
        x = x + target * sqrt(-expm1(-2 * eta * h)) * noise(sigma, target)
    return x


def _multistep(past: list[tuple[float, "Tensor"]], h: float, width: float) -> "Tensor":
    """What the slope, and from the third step the curvature, of the estimates add to a 3M step."""
    phi_2 = expm1(-width) / width + 1
    (now, x0), (then, x1), *older = past
    r_0 = log(then / now) / h
    slope = (x0 - x1) / r_0
    if not older:
        return phi_2 * slope
    r_1 = log(older[0][0] / then) / h
    bend = (slope - (x1 - older[0][1]) / r_1) / (r_0 + r_1)
    return phi_2 * (slope + bend * r_0) - (phi_2 / width - 0.5) * bend


def dpmpp_sde(x: "Tensor", sigmas: Sigmas, noise: Noise, eta: float = 1.0) -> Sampling:
    """DPM-Solver++(2S) as an SDE: an ancestral half step, then the whole step with the second estimate."""
    for sigma, target in pairwise(sigmas):
        x0 = yield x, sigma
        if not target:
            return x0
        middle = sqrt(sigma * target)
        down, up = ancestral(sigma, middle, eta)
        halfway = move(x, x0, down / sigma) + up * noise(sigma, middle)
        x0 = yield halfway, middle
        down, up = ancestral(sigma, target, eta)
        x = move(x, x0, down / sigma) + up * noise(sigma, target)
    return x


def plms(x: "Tensor", sigmas: Sigmas, noise: Noise) -> Sampling:
    """Pseudo linear multistep: Adams-Bashforth weights on the slopes; the first step averages two."""
    slopes: list[Tensor] = []
    for sigma, target in pairwise(sigmas):
        x0 = yield x, sigma
        slopes = [(x - x0) / sigma, *slopes][:4]
        slope = reduce(add, (weight * past for weight, past in zip(PLMS[len(slopes)], slopes, strict=True)))
        if len(slopes) == 1 and target:
            guess = x + slope * (target - sigma)
            x0 = yield guess, target
            slope = (slope + (guess - x0) / target) / 2
        x = x + slope * (target - sigma)
    return x


PLMS: dict[int, tuple[float, ...]] = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@dataclass(frozen=True, slots=True)
class Sampler:
    """A sampler as the registry offers it.

    `eta` is the share of fresh noise in the exact step from infinite noise; `brownian` says that its noise
    comes from a Brownian tree; `own_ladder` that it ignores the noise schedule and walks table entries.
    """

    run: Callable[["Tensor", Sigmas, Noise], Sampling]
    eta: float = 0.0
    brownian: bool = False
    own_schedule: bool = False

    def __call__(self, x: "Tensor", sigmas: Sigmas, noise: Noise) -> Sampling:
        """Start a run."""
        return self.run(x, sigmas, noise)


SAMPLERS: dict[str, Sampler] = {
    "k_euler": Sampler(euler),
    "k_euler_ancestral": Sampler(euler_ancestral, eta=1.0),
    "k_heun": Sampler(heun),
    "k_dpm_2": Sampler(dpm_2),
    "k_dpm_2_ancestral": Sampler(partial(dpm_2, eta=1.0), eta=1.0),
    "k_lms": Sampler(lms),
    "k_dpmpp_2s_ancestral": Sampler(dpmpp_2s_ancestral, eta=1.0),
    "k_dpmpp_2m": Sampler(dpmpp_2m),
    "k_dpmpp_2m_sde": Sampler(dpmpp_2m_sde, eta=1.0, brownian=True),
    "k_dpmpp_3m_sde": Sampler(dpmpp_3m_sde, eta=1.0, brownian=True),
    "k_dpmpp_sde": Sampler(dpmpp_sde, eta=1.0, brownian=True),
    "k_dpm_fast": Sampler(dpm_fast),
    "k_dpm_adaptive": Sampler(dpm_adaptive),
    "ddim_v3": Sampler(euler, own_schedule=True),
    "plms": Sampler(plms, own_schedule=True),
}

ALIASES: dict[str, tuple[str, str]] = {
    "ddim": ("ddim_v3", "off"),
    "nai_smea": ("k_euler_ancestral", "smea"),
    "nai_smea_dyn": ("k_euler_ancestral", "dyn"),
}
"""Other names a request may use: the sampler meant, and the SMEA mode that comes with it."""


def resolve_sampler(name: str) -> tuple[str, str]:
    """The registry's name for a requested sampler, and the SMEA mode its name implies.

    Raises:
        UnknownName: neither a sampler nor an alias.
    """
    if name in SAMPLERS:
        return name, "off"
    if name not in ALIASES:
        raise UnknownName("sampler", name, (*SAMPLERS, *ALIASES))
    return ALIASES[name]
