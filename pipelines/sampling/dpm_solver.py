"""DPM-Solver in log sigma: `dpm_fast` spends a fixed number of estimates, `dpm_adaptive` chooses its steps.

Both walk from the first sigma to the last above zero and end with the estimate there. In `t = -ln sigma` the
ODE's linear part is solved exactly, only the noise direction is approximated: Lu et al. 2022, DPM-Solver,
algorithms 1, 2 and 4; the step control follows k-diffusion's PID controller (order 3, integral term alone).
"""

from collections.abc import Generator
from math import atan, exp, expm1, inf, log
from typing import TYPE_CHECKING

from pipelines.types import Noise, Question, Sampling, Sigmas

if TYPE_CHECKING:
    from torch import Tensor

RTOL, ATOL = 0.05, 0.0078
FIRST_STEP = 0.05
SAFETY = 0.81
MOST_ESTIMATES = 200


def dpm_fast(x: "Tensor", sigmas: Sigmas, noise: Noise) -> Sampling:
    """`n - 1` estimates in equal segments of log sigma, mostly of order 3, and the estimate at the end."""
    budget = len(sigmas) - 2
    t, end = -log(sigmas[0]), -log(sigmas[-2])
    orders = _orders(budget)
    width = (end - t) / len(orders) if orders else 0.0
    for order in orders:
        slope = yield from _slope(x, t)
        _, x = yield from STEPS[order](x, slope, t, width)
        t += width
    return (yield x, sigmas[-2])


def _orders(budget: int) -> list[int]:
    """How many estimates each segment may spend: threes, then what is left."""
    if budget <= 0:
        return []
    if budget % 3 == 0:
        return [3] * (budget // 3 - 1) + [2, 1]
    return [3] * (budget // 3) + [budget % 3]


def dpm_adaptive(x: "Tensor", sigmas: Sigmas, noise: Noise) -> Sampling:
    """Orders 2 and 3 are compared and the step sized by their difference; the ladder's rungs are ignored.

    At most 200 estimates: when they are spent, what is left of the way is one step.
    """
    t, end = -log(sigmas[0]), -log(sigmas[-2])
    width, spent, before = FIRST_STEP, 0, x
    slope: Tensor | None = None
    while t < end - 1e-5:
        if slope is None:
            slope = yield from _slope(x, t)
            spent += 1
        last_chance = spent > MOST_ESTIMATES - 6  # this step, the next one's slope and step, and the end
        step = end - t if last_chance else min(end - t, width)
        low, high = yield from third_order(x, slope, t, step)
        spent += 2
        factor = _growth(_error(low, high, before))
        if factor >= SAFETY or last_chance:
            x, before, slope, t = high, low, None, t + step
        width = step * factor
    return (yield x, sigmas[-2])


def _error(low: "Tensor", high: "Tensor", before: "Tensor") -> float:
    """The difference of two orders in units of the tolerance: the one number that leaves the device."""
    allowed = (RTOL * low.abs().maximum(before.abs())).clamp(min=ATOL)
    return float(((low - high) / allowed).square().mean().sqrt())


def _growth(error: float) -> float:
    """The factor for the next step's width, softly limited to (0.2, 2.6)."""
    factor = inf if error == 0 else (1 / (error + 1e-8)) ** (1 / 3)
    return 1 + atan(factor - 1)


def _slope(x: "Tensor", t: float) -> Generator[Question, "Tensor", "Tensor"]:
    """Ask for the estimate at t and return the noise direction."""
    sigma = exp(-t)
    x0 = yield x, sigma
    return (x - x0) / sigma


def first_order(
    x: "Tensor", slope: "Tensor", t: float, h: float
) -> Generator[Question, "Tensor", tuple["Tensor", "Tensor"]]:
    """No further estimate: DPM-Solver-1, which is DDIM. Every step returns (a lower order, its own)."""
    yield from ()
    result = x - exp(-t - h) * expm1(h) * slope
    return result, result


def second_order(
    x: "Tensor", slope: "Tensor", t: float, h: float, r: float = 0.5
) -> Generator[Question, "Tensor", tuple["Tensor", "Tensor"]]:
    """One more estimate at the share r of the step."""
    inner = yield from _slope(x - exp(-t - r * h) * expm1(r * h) * slope, t + r * h)
    low = x - exp(-t - h) * expm1(h) * slope
    return low, low - exp(-t - h) * expm1(h) / (2 * r) * (inner - slope)


def third_order(
    x: "Tensor", slope: "Tensor", t: float, h: float
) -> Generator[Question, "Tensor", tuple["Tensor", "Tensor"]]:
    """Two more estimates, at one and two thirds; the lower order returned is DPM-Solver-2's."""
    third, two = h / 3, 2 * h / 3
    first = yield from _slope(x - exp(-t - third) * expm1(third) * slope, t + third)
    bend = first - slope
    halfway = x - exp(-t - two) * expm1(two) * slope - exp(-t - two) * 2 * (expm1(two) / two - 1) * bend
    second = yield from _slope(halfway, t + two)
    plain = x - exp(-t - h) * expm1(h) * slope
    low = plain - exp(-t - h) * expm1(h) * 1.5 * bend
    return low, plain - exp(-t - h) * 1.5 * (expm1(h) / h - 1) * (second - slope)


STEPS = {1: first_order, 2: second_order, 3: third_order}
