"""DPM-Solver in log sigma: `dpm_fast` makes a fixed number of evaluations, `dpm_adaptive` chooses its own steps.

Both go from the first sigma to the last above zero and end with the estimate there. In `t = -ln sigma` the ODE's
linear part is solved exactly and only the noise (eps) is approximated. Sources: Lu et al. 2022, DPM-Solver,
algorithms 1, 2 and 4; k-diffusion, sample_dpm_fast and sample_dpm_adaptive; step control: k-diffusion's PID controller
(order 3, integral term only).
"""

from collections.abc import Generator
from math import atan, exp, expm1, log
from typing import TYPE_CHECKING, TypeAlias

from pipelines.types import Noise, NoisyLatents, SamplerCoroutine, Sigmas

if TYPE_CHECKING:
    from torch import Tensor

RTOL, ATOL = 0.05, 0.0078
FIRST_STEP = 0.05
ACCEPT_FACTOR = 0.81
MAX_EVALUATIONS = 200
SolverStep: TypeAlias = Generator[NoisyLatents, "Tensor", tuple["Tensor", "Tensor"]]
"""A running step, which returns the result of a lower order and its own."""


def dpm_fast(x: "Tensor", sigmas: Sigmas, noise: Noise) -> SamplerCoroutine:
    """`n - 1` evaluations in equal segments of log sigma, mostly of order 3, then one at the last sigma."""
    budget = len(sigmas) - 2
    t, end = -log(sigmas[0]), -log(sigmas[-2])
    orders = _segment_orders(budget)
    h = (end - t) / len(orders) if orders else 0.0
    for order in orders:
        eps = yield from _evaluate_eps(x, t)
        _, x = yield from STEPS[order](x, eps, t, h)
        t += h
    return (yield x, sigmas[-2])


def _segment_orders(budget: int) -> list[int]:
    """Return the number of evaluations of each segment: threes, then the remainder."""
    if budget <= 0:
        return []
    if budget % 3 == 0:
        return [3] * (budget // 3 - 1) + [2, 1]
    return [3] * (budget // 3) + [budget % 3]


def dpm_adaptive(x: "Tensor", sigmas: Sigmas, noise: Noise) -> SamplerCoroutine:
    """Compare orders 2 and 3 and size each step by their difference; the sigmas between first and last are ignored.

    At most 200 evaluations: when they are used up, one step covers the rest.
    """
    t, end = -log(sigmas[0]), -log(sigmas[-2])
    next_h, evaluations, x_previous = FIRST_STEP, 0, x
    eps: Tensor | None = None
    while t < end - 1e-5:
        if eps is None:
            eps = yield from _evaluate_eps(x, t)
            evaluations += 1
        # 6 are reserved: 2 for this step, 3 for the next, 1 for the estimate at the end
        is_last = evaluations > MAX_EVALUATIONS - 6
        h = end - t if is_last else min(end - t, next_h)
        x_low, x_high = yield from dpm_solver_3_step(x, eps, t, h)
        evaluations += 2
        factor = _step_factor(_scaled_error(x_low, x_high, x_previous))
        if factor >= ACCEPT_FACTOR or is_last:
            x, x_previous, eps, t = x_high, x_low, None, t + h
        next_h = h * factor
    return (yield x, sigmas[-2])


def _scaled_error(x_low: "Tensor", x_high: "Tensor", x_previous: "Tensor") -> float:
    """Return the RMS difference of two orders in units of the tolerance. The only device-to-host copy of a step."""
    tolerance = (RTOL * x_low.abs().maximum(x_previous.abs())).clamp(min=ATOL)
    return float(((x_low - x_high) / tolerance).square().mean().sqrt())


def _step_factor(error: float) -> float:
    """Return the factor for the next step size, softly limited to (0.2, 2.6)."""
    return 1 + atan((1 / (error + 1e-8)) ** (1 / 3) - 1)


def _evaluate_eps(x: "Tensor", t: float) -> Generator[NoisyLatents, "Tensor", "Tensor"]:
    """Request the estimate at t and return the noise eps it implies."""
    sigma = exp(-t)
    x0 = yield x, sigma
    return (x - x0) / sigma


def dpm_solver_1_step(x: "Tensor", eps: "Tensor", t: float, h: float) -> SolverStep:
    """DPM-Solver-1, which is DDIM, without further evaluations. Source: Lu et al. 2022."""
    yield from ()
    result = x - exp(-t - h) * expm1(h) * eps
    return result, result


def dpm_solver_2_step(x: "Tensor", eps: "Tensor", t: float, h: float, r: float = 0.5) -> SolverStep:
    """DPM-Solver-2, with one more evaluation at the share r of the step. Source: Lu et al. 2022, algorithm 1."""
    eps_r = yield from _evaluate_eps(x - exp(-t - r * h) * expm1(r * h) * eps, t + r * h)
    x_low = x - exp(-t - h) * expm1(h) * eps
    return x_low, x_low - exp(-t - h) * expm1(h) / (2 * r) * (eps_r - eps)


def dpm_solver_3_step(x: "Tensor", eps: "Tensor", t: float, h: float) -> SolverStep:
    """DPM-Solver-3, with two more evaluations at one and two thirds of the step; the lower order is DPM-Solver-2's.

    Source: Lu et al. 2022, algorithm 2.
    """
    h_1, h_2 = h / 3, 2 * h / 3
    eps_1 = yield from _evaluate_eps(x - exp(-t - h_1) * expm1(h_1) * eps, t + h_1)
    change = eps_1 - eps
    x_2 = x - exp(-t - h_2) * expm1(h_2) * eps - exp(-t - h_2) * 2 * (expm1(h_2) / h_2 - 1) * change
    eps_2 = yield from _evaluate_eps(x_2, t + h_2)
    x_first = x - exp(-t - h) * expm1(h) * eps
    x_low = x_first - exp(-t - h) * expm1(h) * 1.5 * change
    return x_low, x_first - exp(-t - h) * 1.5 * (expm1(h) / h - 1) * (eps_2 - eps)


STEPS = {1: dpm_solver_1_step, 2: dpm_solver_2_step, 3: dpm_solver_3_step}
