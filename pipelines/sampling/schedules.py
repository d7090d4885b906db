"""Noise ladders: how a run of n steps descends from the highest sigma to zero.

A ladder is a tuple of n floats and a final 0. Under zero terminal SNR the first may be `inf`; karras and
its kin, which cannot be laid over an infinite range, then begin at `start` after that first step.
Sources: Karras et al. 2022, eq. 5 (karras); k-diffusion (exponential, polyexponential);
Stable Diffusion's generative-models (sgm_uniform); ComfyUI (simple); Lee et al. 2024 (beta).
"""

from collections.abc import Callable
from math import ceil, exp, floor, isinf, log

from pipelines.errors import UnknownName
from pipelines.sampling.prediction import NoiseTable
from pipelines.types import Sigmas


def linspace(first: float, last: float, count: int) -> list[float]:
    """`count` evenly spaced numbers, both ends included; the first alone when there is but one."""
    if count < 2:
        return [first] * count
    return [*(first + (last - first) * k / (count - 1) for k in range(count - 1)), last]


def native(steps: int, table: NoiseTable) -> list[float]:
    """Uniform in t, both ends included: what NAI's own lists of sigmas equal (arXiv 2409.15997)."""
    return [table.sigma(t) for t in linspace(table.position(table.highest), 0.0, steps)]


def sgm_uniform(steps: int, table: NoiseTable) -> list[float]:
    """Uniform in t with the lowest rung left out."""
    return [table.sigma(t) for t in linspace(table.position(table.highest), 0.0, steps + 1)[:-1]]


def simple(steps: int, table: NoiseTable) -> list[float]:
    """Every (n / steps)-th entry of the table, from the top."""
    top = round(table.position(table.highest))
    return [table.sigmas[top - floor(k * (top + 1) / steps)] for k in range(steps)]


def beta(steps: int, table: NoiseTable, alpha: float = 0.6) -> list[float]:
    """Quantiles of Beta(0.6, 0.6) in t, dense at both ends; equal neighbours are merged."""
    from scipy.special import betaincinv  # pyright: ignore[reportMissingTypeStubs]

    top = round(table.position(table.highest))
    quantiles = (float(betaincinv(alpha, alpha, 1 - k / steps)) for k in range(steps))
    entries = dict.fromkeys(round(quantile * top) for quantile in quantiles)
    return [table.sigmas[t] for t in entries]


def karras(steps: int, highest: float, lowest: float, rho: float = 7.0) -> list[float]:
    """Evenly spaced in sigma^(1/7)."""
    return [root**rho for root in linspace(highest ** (1 / rho), lowest ** (1 / rho), steps)]


def exponential(steps: int, highest: float, lowest: float) -> list[float]:
    """Evenly spaced in log sigma."""
    return [exp(value) for value in linspace(log(highest), log(lowest), steps)]


def polyexponential(steps: int, highest: float, lowest: float, rho: float = 1.0) -> list[float]:
    """A power of an even spacing in log sigma; rho = 1, the common default, makes it exponential."""
    spread = log(highest / lowest)
    return [exp(share**rho * spread + log(lowest)) for share in linspace(1.0, 0.0, steps)]


TABLE_SCHEDULES: dict[str, Callable[[int, NoiseTable], list[float]]] = {
    "native": native,
    "simple": simple,
    "sgm_uniform": sgm_uniform,
    "beta": beta,
}
RANGE_SCHEDULES: dict[str, Callable[[int, float, float], list[float]]] = {
    "karras": karras,
    "exponential": exponential,
    "polyexponential": polyexponential,
}
SCHEDULES = (*TABLE_SCHEDULES, *RANGE_SCHEDULES)


def make_sigmas(schedule: str, steps: int, table: NoiseTable, start: float = 56.0) -> Sigmas:
    """The sigmas of a run, a final 0 included.

    Args:
        schedule: a name in SCHEDULES.
        steps: at least 1; `beta` may return fewer rungs where two would fall together.
        table: the network's noise table; its `highest` is the first rung.
        start: where the ranged schedules begin on a zero-terminal-SNR table, after the first step;
            clamped into the table's finite part.

    Raises:
        UnknownName: there is no such schedule.
    """
    if schedule not in SCHEDULES:
        raise UnknownName("noise schedule", schedule, SCHEDULES)
    if schedule in TABLE_SCHEDULES:
        rungs = TABLE_SCHEDULES[schedule](steps, table)
    elif not table.zsnr or table.highest < table.sigmas[-2]:
        rungs = RANGE_SCHEDULES[schedule](steps, table.highest, table.lowest)
    else:
        start = min(max(start, table.lowest), table.sigmas[-2])
        rungs = [table.highest, *RANGE_SCHEDULES[schedule](steps - 1, start, table.lowest)]
    # the start is the table's to the last digit, not a rounded trip through t or a root and back
    return (table.highest, *rungs[1:], 0.0)


def snap_to_table(sigmas: Sigmas, table: NoiseTable) -> Sigmas:
    """The ladder with every rung moved to the table entry the network will be told: DDIM's and PLMS's way."""
    return (*(sigma if isinf(sigma) else table.sigmas[table.index(sigma)] for sigma in sigmas[:-1]), 0.0)


def truncate_sigmas(sigmas: Sigmas, strength: float, table: NoiseTable) -> Sigmas:
    """The lower part of a ladder that a picture redrawn at `strength` in (0, 1] runs through.

    `max(1, ceil(n * strength))` intervals are kept. A picture cannot survive infinite noise, so below full
    strength an infinite first rung becomes the table's sigma at that share of its entries, or the entry above the
    second rung where that is higher.
    """
    intervals = max(1, ceil((len(sigmas) - 1) * strength - 1e-9))
    part = sigmas[len(sigmas) - 1 - intervals :]
    if strength < 1 and isinf(part[0]):
        entry = max(floor(999 * strength), min(floor(table.position(part[1])) + 1, 998))
        return (table.sigmas[entry], *part[1:])
    return part
