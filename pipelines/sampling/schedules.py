"""Noise schedules: the sigmas of a run of n steps, from the highest to zero.

A schedule gives n floats and a final 0. Under zero terminal SNR the first may be `inf`; those of RANGE_SCHEDULES cannot
span an infinite range and begin at `sigma_start` after that first step.
Sources: Karras et al. 2022, eq. 5 (karras); k-diffusion, get_sigmas_* (exponential, polyexponential);
Stable Diffusion's generative-models (sgm_uniform); ComfyUI (simple); Lee et al. 2024 (beta); Luo et al. 2023 (lcm).
"""

from collections.abc import Callable
from math import ceil, exp, floor, isinf, log

from pipelines.errors import UnknownName
from pipelines.sampling.gits import gits
from pipelines.sampling.prediction import NoiseTable
from pipelines.types import Sigmas

DISTILLED_STEPS = 50


def linspace(first: float, last: float, count: int) -> list[float]:
    """Return `count` evenly spaced numbers, both ends included; `[first]` if `count` is 1."""
    if count < 2:
        return [first] * count
    return [*(first + (last - first) * k / (count - 1) for k in range(count - 1)), last]


def native(steps: int, table: NoiseTable) -> list[float]:
    """Uniform in t, both ends included; equals the lists of sigmas in NAI's paper (arXiv 2409.15997)."""
    return [table.sigma_at(t) for t in linspace(table.fractional_index(table.sigma_max), 0.0, steps)]


def sgm_uniform(steps: int, table: NoiseTable) -> list[float]:
    """Uniform in t without the lowest entry. Source: generative-models."""
    return [table.sigma_at(t) for t in linspace(table.fractional_index(table.sigma_max), 0.0, steps + 1)[:-1]]


def simple(steps: int, table: NoiseTable) -> list[float]:
    """Every (n / steps)-th of the table's n entries, from the top. Source: ComfyUI.

    The same as diffusers' "trailing" spacing if `steps` divides n.
    """
    top = round(table.fractional_index(table.sigma_max))
    return [table.sigmas[top - floor(k * (top + 1) / steps)] for k in range(steps)]


def beta(steps: int, table: NoiseTable, alpha: float = 0.6) -> list[float]:
    """Quantiles of Beta(0.6, 0.6) in t, dense at both ends; duplicates are dropped. Source: Lee et al. 2024."""
    from scipy.special import betaincinv  # pyright: ignore[reportMissingTypeStubs]

    top = round(table.fractional_index(table.sigma_max))
    quantiles = (float(betaincinv(alpha, alpha, 1 - k / steps)) for k in range(steps))
    # the median falls in the middle between two entries, where the last digit of `betaincinv` would decide
    entries = dict.fromkeys(round(round(quantile * top, 6)) for quantile in quantiles)
    return [table.sigmas[t] for t in entries]


def lcm(steps: int, table: NoiseTable) -> list[float]:
    """Of 50 evenly spaced entries, every (50 / steps)-th from the top; more steps are `simple`'s.

    A latent consistency model was distilled on those 50. Source: Luo et al. 2023, "Latent consistency models".
    """
    if steps > DISTILLED_STEPS:
        return simple(steps, table)
    top = round(table.fractional_index(table.sigma_max))
    chosen = (floor(k * DISTILLED_STEPS / steps) for k in range(steps))
    return [table.sigmas[top - floor(j * (top + 1) / DISTILLED_STEPS)] for j in chosen]


def karras(steps: int, sigma_max: float, sigma_min: float, rho: float = 7.0) -> list[float]:
    """Evenly spaced in sigma^(1/7). Source: Karras et al. 2022, eq. 5."""
    return [root**rho for root in linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps)]


def exponential(steps: int, sigma_max: float, sigma_min: float) -> list[float]:
    """Evenly spaced in log sigma. Source: k-diffusion, get_sigmas_exponential."""
    return [exp(value) for value in linspace(log(sigma_max), log(sigma_min), steps)]


def polyexponential(steps: int, sigma_max: float, sigma_min: float, rho: float = 1.0) -> list[float]:
    """A power of an even spacing in log sigma; rho = 1, the common default, equals exponential."""
    spread = log(sigma_max / sigma_min)
    return [exp(share**rho * spread + log(sigma_min)) for share in linspace(1.0, 0.0, steps)]


TABLE_SCHEDULES: dict[str, Callable[[int, NoiseTable], list[float]]] = {
    "native": native,
    "simple": simple,
    "sgm_uniform": sgm_uniform,
    "beta": beta,
    "lcm": lcm,
}
RANGE_SCHEDULES: dict[str, Callable[[int, float, float], list[float]]] = {
    "karras": karras,
    "exponential": exponential,
    "polyexponential": polyexponential,
    "gits": gits,
}
SCHEDULES = (*TABLE_SCHEDULES, *RANGE_SCHEDULES)


def make_sigmas(schedule: str, steps: int, table: NoiseTable, sigma_start: float = 56.0) -> Sigmas:
    """Return the sigmas of a run, including a final 0.

    Args:
        steps: at least 1; `beta` may return fewer sigmas because it drops duplicates.
        table: its `sigma_max` is the first sigma.
        sigma_start: second sigma of the range schedules on a zero-terminal-SNR table; clamped to the table's finite
            sigmas.

    Raises:
        UnknownName: `schedule` is not in SCHEDULES.
    """
    if schedule not in SCHEDULES:
        raise UnknownName("noise schedule", schedule, SCHEDULES)
    if schedule in TABLE_SCHEDULES:
        values = TABLE_SCHEDULES[schedule](steps, table)
    elif not table.zsnr or table.sigma_max < table.sigmas[-2]:
        values = RANGE_SCHEDULES[schedule](steps, table.sigma_max, table.sigma_min)
    else:
        sigma_start = min(max(sigma_start, table.sigma_min), table.sigmas[-2])
        values = [table.sigma_max, *RANGE_SCHEDULES[schedule](steps - 1, sigma_start, table.sigma_min)]
    # the first sigma is the table's own: a round trip through t or a root would change its last digits
    return (table.sigma_max, *values[1:], 0.0)


def snap_to_table(sigmas: Sigmas, table: NoiseTable) -> Sigmas:
    """Return the sigmas moved to the table entries nearest to them, as DDIM and PLMS use them."""
    return (*(table.snap(sigma) for sigma in sigmas[:-1]), 0.0)


def truncate_sigmas(sigmas: Sigmas, strength: float, table: NoiseTable) -> Sigmas:
    """Return the last part of `sigmas` that a run from an init image uses: the share `strength` in (0, 1].

    `max(1, ceil(n * strength))` steps are kept. Infinite noise would erase the init image, so if `strength` < 1 an
    infinite first sigma is replaced by the table's sigma at that share of its entries, or by the entry above the
    second sigma where that is higher.
    """
    steps = max(1, ceil((len(sigmas) - 1) * strength - 1e-9))
    part = sigmas[len(sigmas) - 1 - steps :]
    if strength < 1 and isinf(part[0]):
        entry = max(floor(999 * strength), min(floor(table.fractional_index(part[1])) + 1, 998))
        return (table.sigmas[entry], *part[1:])
    return part
