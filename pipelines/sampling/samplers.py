"""Samplers: coroutines that request denoised estimates and return the final latents.

Each yields `(x, sigma)` and is sent the estimate x0, shaped like `x`; it does not call the network. `sigmas` is a
falling tuple of floats that ends in 0; `noise(sigma, target)` returns unit-variance noise shaped like `x`. A sampler
with two evaluations per step yields twice. All operations are elementwise, so `x` may be any tensor. The DPM-Solver
samplers with their own steps are in dpm_solver.py. Sources: k-diffusion's sampling.py, where samplers are
named `sample_*` and ancestral_step is get_ancestral_step; Karras et al. 2022; Lu et al. 2022, DPM-Solver and
DPM-Solver++; Liu et al. 2022 (plms); Song et al. 2021 (ddim); Permenter & Yuan 2023; Luo et al. 2023 (lcm).
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
from pipelines.types import Noise, SamplerCoroutine, Sigmas

if TYPE_CHECKING:
    from torch import Tensor


def euler_step(x: "Tensor", x0: "Tensor", ratio: float) -> "Tensor":
    """Return x after an Euler step from sigma to `ratio * sigma`; exact where x0 is constant."""
    return x0 + (x - x0) * ratio


def ancestral_step(sigma: float, target: float, eta: float = 1.0) -> tuple[float, float]:
    """Split an ancestral step into `(sigma_down, sigma_up)`: the deterministic step's target and the noise to add."""
    sigma_up = min(target, eta * sqrt(target**2 * (sigma**2 - target**2) / sigma**2))
    return sqrt(target**2 - sigma_up**2), sigma_up


def euler(x: "Tensor", sigmas: Sigmas, noise: Noise) -> SamplerCoroutine:
    """Euler, one evaluation per step. Source: Karras et al. 2022, algorithm 2 without churn."""
    for sigma, target in pairwise(sigmas):
        x0 = yield x, sigma
        x = euler_step(x, x0, target / sigma)
    return x


def euler_ancestral(x: "Tensor", sigmas: Sigmas, noise: Noise, eta: float = 1.0) -> SamplerCoroutine:
    """Euler step to sigma_down, then noise up to the target."""
    for sigma, target in pairwise(sigmas):
        x0 = yield x, sigma
        sigma_down, sigma_up = ancestral_step(sigma, target, eta)
        x = euler_step(x, x0, sigma_down / sigma)
        if sigma_up:
            x = x + sigma_up * noise(sigma, target)
    return x


def lcm(x: "Tensor", sigmas: Sigmas, noise: Noise) -> SamplerCoroutine:
    """The estimate with fresh noise in every step, for networks distilled to estimate a trajectory's end.

    Source: Song et al. 2023, "Consistency models", algorithm 1.
    """
    for sigma, target in pairwise(sigmas):
        x = yield x, sigma
        if target:
            x = x + target * noise(sigma, target)
    return x


def heun(x: "Tensor", sigmas: Sigmas, noise: Noise) -> SamplerCoroutine:
    """Euler, corrected with both ends' mean slope; two evaluations per step. Karras et al. 2022, algorithm 1."""
    for sigma, target in pairwise(sigmas):
        x0 = yield x, sigma
        x_next = euler_step(x, x0, target / sigma)
        if target:
            slope = (x - x0) / sigma
            x0 = yield x_next, target
            x_next = x + (slope + (x_next - x0) / target) * ((target - sigma) / 2)
        x = x_next
    return x


def dpm_2(x: "Tensor", sigmas: Sigmas, noise: Noise, eta: float = 0.0) -> SamplerCoroutine:
    """DPM-Solver-2 in Karras' form: midpoint in log sigma, two evaluations per step; eta > 0 adds ancestral noise."""
    for sigma, target in pairwise(sigmas):
        x0 = yield x, sigma
        sigma_down, sigma_up = ancestral_step(sigma, target, eta)
        if not sigma_down:
            x = x0
            continue
        sigma_mid = sqrt(sigma * sigma_down)
        x_mid = euler_step(x, x0, sigma_mid / sigma)
        x0 = yield x_mid, sigma_mid
        x = x + (x_mid - x0) * ((sigma_down - sigma) / sigma_mid)
        if sigma_up:
            x = x + sigma_up * noise(sigma, target)
    return x


def lms(x: "Tensor", sigmas: Sigmas, noise: Noise, order: int = 4) -> SamplerCoroutine:
    """Linear multistep: the polynomial through the last slopes is integrated exactly (numerically in sample_lms)."""
    slopes: list[Tensor] = []
    for step, (sigma, target) in enumerate(pairwise(sigmas)):
        x0 = yield x, sigma
        slopes = [(x - x0) / sigma, *slopes][:order]
        nodes = sigmas[step::-1][: len(slopes)]
        weights = [_adams_weight(nodes, k, sigma, target) for k in range(len(nodes))]
        x = x + reduce(add, (weight * slope for weight, slope in zip(weights, slopes, strict=True)))
    return x


def _adams_weight(nodes: Sigmas, k: int, start: float, end: float) -> float:
    """Return the integral over [start, end] of the Lagrange polynomial that is 1 at node k; degree 3 at most."""
    middle, half = (start + end) / 2, (end - start) / 2
    total = 0.0
    for point in (middle - half / sqrt(3), middle + half / sqrt(3)):  # two Gauss nodes: exact to degree 3
        value = 1.0
        for j, node in enumerate(nodes):
            if j != k:
                value *= (point - node) / (nodes[k] - node)
        total += value
    return total * half


def dpmpp_2s_ancestral(x: "Tensor", sigmas: Sigmas, noise: Noise, eta: float = 1.0) -> SamplerCoroutine:
    """DPM-Solver++(2S), algorithm 1, to sigma_down, then noise up to the target; two evaluations per step."""
    for sigma, target in pairwise(sigmas):
        x0 = yield x, sigma
        sigma_down, sigma_up = ancestral_step(sigma, target, eta)
        if not sigma_down:
            x = x0
            continue
        sigma_mid = sqrt(sigma * sigma_down)
        x0 = yield euler_step(x, x0, sigma_mid / sigma), sigma_mid
        x = euler_step(x, x0, sigma_down / sigma)
        if sigma_up:
            x = x + sigma_up * noise(sigma, target)
    return x


def dpmpp_2m(x: "Tensor", sigmas: Sigmas, noise: Noise) -> SamplerCoroutine:
    """DPM-Solver++(2M), algorithm 2: the last two estimates are extrapolated to the step's middle in log sigma."""
    previous: tuple[float, Tensor] | None = None
    for sigma, target in pairwise(sigmas):
        x0 = yield x, sigma
        if previous is None or not target:
            x = euler_step(x, x0, target / sigma)
        else:
            ratio = log(previous[0] / sigma) / log(sigma / target)
            x = euler_step(x, x0 + (x0 - previous[1]) / (2 * ratio), target / sigma)
        previous = sigma, x0
    return x


def dpmpp_2m_sde(x: "Tensor", sigmas: Sigmas, noise: Noise, eta: float = 1.0) -> SamplerCoroutine:
    """DPM-Solver++(2M) for the SDE, midpoint form."""
    previous: tuple[float, Tensor] | None = None
    for sigma, target in pairwise(sigmas):
        x0 = yield x, sigma
        if not target:
            return x0
        h = log(sigma / target)
        weight = -expm1(-h * (1 + eta))
        x_next = euler_step(x, x0, 1 - weight)
        if previous is not None:
            x_next = x_next + (x0 - previous[1]) * (weight / 2 * h / log(previous[0] / sigma))
        x = x_next + target * sqrt(-expm1(-2 * eta * h)) * noise(sigma, target)
        previous = sigma, x0
    return x


def dpmpp_3m_sde(x: "Tensor", sigmas: Sigmas, noise: Noise, eta: float = 1.0) -> SamplerCoroutine:
    """DPM-Solver++(3M) for the SDE: the last three estimates, with divided differences in log sigma."""
    past: list[tuple[float, Tensor]] = []
    for sigma, target in pairwise(sigmas):
        x0 = yield x, sigma
        if not target:
            return x0
        h = log(sigma / target)
        width = h * (1 + eta)
        x = euler_step(x, x0, exp(-width))
        past = [(sigma, x0), *past][:3]
        if len(past) > 1:
            x = x + _multistep_correction(past, h, width)
        x = x + target * sqrt(-expm1(-2 * eta * h)) * noise(sigma, target)
    return x


def _multistep_correction(past: list[tuple[float, "Tensor"]], h: float, width: float) -> "Tensor":
    """Return what the estimates' slope and, from the third step on, their curvature add to a 3M step."""
    phi_2 = expm1(-width) / width + 1
    (sigma_0, x0), (sigma_1, x1), *older = past
    r_0 = log(sigma_1 / sigma_0) / h
    slope = (x0 - x1) / r_0
    if not older:
        return phi_2 * slope
    r_1 = log(older[0][0] / sigma_1) / h
    curvature = (slope - (x1 - older[0][1]) / r_1) / (r_0 + r_1)
    return phi_2 * (slope + curvature * r_0) - (phi_2 / width - 0.5) * curvature


def dpmpp_sde(x: "Tensor", sigmas: Sigmas, noise: Noise, eta: float = 1.0) -> SamplerCoroutine:
    """DPM-Solver++(2S) for the SDE: an ancestral half step (r = 1/2), then the full step with its estimate."""
    for sigma, target in pairwise(sigmas):
        x0 = yield x, sigma
        if not target:
            return x0
        sigma_mid = sqrt(sigma * target)
        sigma_down, sigma_up = ancestral_step(sigma, sigma_mid, eta)
        x_mid = euler_step(x, x0, sigma_down / sigma) + sigma_up * noise(sigma, sigma_mid)
        x0 = yield x_mid, sigma_mid
        sigma_down, sigma_up = ancestral_step(sigma, target, eta)
        x = euler_step(x, x0, sigma_down / sigma) + sigma_up * noise(sigma, target)
    return x


def plms(x: "Tensor", sigmas: Sigmas, noise: Noise) -> SamplerCoroutine:
    """Pseudo linear multistep: Adams-Bashforth weights on the slopes; the first step averages two slopes.

    Source: Liu et al. 2022, PNDM (PLMS); Stable Diffusion's plms.py. A first step to 0 is plain Euler, unlike there.
    """
    slopes: list[Tensor] = []
    for sigma, target in pairwise(sigmas):
        x0 = yield x, sigma
        slopes = [(x - x0) / sigma, *slopes][:4]
        slope = reduce(add, (weight * past for weight, past in zip(PLMS[len(slopes)], slopes, strict=True)))
        if len(slopes) == 1 and target:
            x_next = x + slope * (target - sigma)
            x0 = yield x_next, target
            slope = (slope + (x_next - x0) / target) / 2
        x = x + slope * (target - sigma)
    return x


def gradient_estimation(x: "Tensor", sigmas: Sigmas, noise: Noise, gamma: float = 2.0) -> SamplerCoroutine:
    """Euler with a slope that is led past this step's, away from the last one's; one evaluation per step.

    Source: Permenter & Yuan 2023, "Interpreting and improving diffusion models from an optimization perspective",
    algorithm 2, with their gamma.
    """
    last: Tensor | None = None
    for sigma, target in pairwise(sigmas):
        x0 = yield x, sigma
        if not target:
            return x0
        slope = (x - x0) / sigma
        led = slope if last is None else slope + (gamma - 1) * (slope - last)
        x, last = x + led * (target - sigma), slope
    return x


PLMS: dict[int, tuple[float, ...]] = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@dataclass(frozen=True, slots=True)
class Sampler:
    """A sampler's function and properties.

    Attributes:
        eta: share of fresh noise in the exact step from infinite noise; 0 for deterministic samplers.
        brownian: its noise always comes from a Brownian tree.
        own_schedule: it ignores the requested noise schedule and uses entries of the noise table.
        smea: it can be used with SMEA.
        evaluations: of the network in a step; about as many, where the steps differ.
    """

    run: Callable[["Tensor", Sigmas, Noise], SamplerCoroutine]
    eta: float = 0.0
    brownian: bool = False
    own_schedule: bool = False
    smea: bool = True
    evaluations: int = 1

    def __call__(self, x: "Tensor", sigmas: Sigmas, noise: Noise) -> SamplerCoroutine:
        return self.run(x, sigmas, noise)


SAMPLERS: dict[str, Sampler] = {
    "k_euler": Sampler(euler),
    "k_euler_ancestral": Sampler(euler_ancestral, eta=1.0),
    "k_heun": Sampler(heun, evaluations=2),
    "k_dpm_2": Sampler(dpm_2, evaluations=2),
    "k_dpm_2_ancestral": Sampler(partial(dpm_2, eta=1.0), eta=1.0, evaluations=2),
    "k_lms": Sampler(lms, smea=False),
    "k_dpmpp_2s_ancestral": Sampler(dpmpp_2s_ancestral, eta=1.0, evaluations=2),
    "k_dpmpp_2m": Sampler(dpmpp_2m),
    "k_dpmpp_2m_sde": Sampler(dpmpp_2m_sde, eta=1.0, brownian=True),
    "k_dpmpp_3m_sde": Sampler(dpmpp_3m_sde, eta=1.0, brownian=True),
    "k_dpmpp_sde": Sampler(dpmpp_sde, eta=1.0, brownian=True, evaluations=2),
    "k_dpm_fast": Sampler(dpm_fast),
    "k_dpm_adaptive": Sampler(dpm_adaptive, evaluations=3),
    "ddim_v3": Sampler(euler, own_schedule=True, smea=False),
    "plms": Sampler(plms, own_schedule=True, smea=False),
    "k_gradient_estimation": Sampler(gradient_estimation),
    "k_lcm": Sampler(lcm, eta=1.0),
}

ALIASES: dict[str, tuple[str, str]] = {
    "ddim": ("ddim_v3", "off"),
    "gradient_estimation": ("k_gradient_estimation", "off"),
    "lcm": ("k_lcm", "off"),
    "nai_smea": ("k_euler_ancestral", "smea"),
    "nai_smea_dyn": ("k_euler_ancestral", "dyn"),
}
"""Other names a request may use, with the sampler and SMEA mode they stand for."""


def resolve_sampler(name: str) -> tuple[str, str]:
    """Return the name in SAMPLERS for a requested sampler, and the SMEA mode the requested name implies.

    Raises:
        UnknownName: `name` is neither a sampler nor an alias.
    """
    if name in SAMPLERS:
        return name, "off"
    if name not in ALIASES:
        raise UnknownName("sampler", name, (*SAMPLERS, *ALIASES))
    return ALIASES[name]
