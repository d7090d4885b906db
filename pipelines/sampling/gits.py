"""The noise schedule GITS, which follows the curvature of Stable Diffusion's trajectories and suits 5 to 20 steps.

Its ladders were found by dynamic programming on trajectories of Stable Diffusion 1.5. Sources: Chen et al. 2024, "On
the Trajectory Regularity of ODE-based Diffusion Sampling"; the ladders are those of ComfyUI's GITSScheduler at its
default coefficient of 1.20.
"""

from math import exp, floor, log

from pipelines.sampling.prediction import scaled_linear

MOST_STEPS = 20
PERCENTS: tuple[tuple[int, ...], ...] = (
    (),
    (0,),
    (0, 71),
    (0, 51, 82),
    (0, 39, 67, 89),
    (0, 34, 58, 79, 94),
    (0, 17, 43, 66, 85, 97),
    (0, 17, 38, 58, 77, 92, 99),
    (0, 17, 38, 55, 71, 85, 94, 99),
    (0, 17, 34, 50, 66, 79, 89, 96, 99),
    (0, 17, 34, 49, 62, 73, 83, 91, 96, 99),
    (0, 17, 33, 46, 58, 70, 79, 87, 93, 97, 99),
    (0, 17, 32, 44, 55, 66, 75, 83, 89, 94, 97, 99),
    (0, 14, 29, 39, 51, 62, 71, 79, 85, 90, 94, 97, 99),
    (0, 14, 29, 38, 50, 60, 69, 77, 83, 88, 92, 95, 97, 99),
    (0, 12, 22, 32, 42, 52, 62, 70, 77, 83, 88, 92, 95, 97, 99),
    (0, 12, 22, 32, 42, 52, 62, 70, 77, 83, 87, 91, 94, 96, 98, 99),
    (0, 12, 22, 32, 42, 52, 62, 70, 77, 83, 87, 90, 93, 95, 97, 98, 99),
    (0, 12, 22, 32, 41, 50, 59, 67, 74, 80, 85, 89, 92, 94, 96, 97, 98, 99),
    (0, 12, 22, 32, 41, 50, 58, 66, 73, 79, 84, 88, 91, 93, 95, 96, 97, 98, 99),
    (0, 12, 22, 32, 41, 50, 58, 66, 73, 79, 83, 87, 90, 92, 94, 95, 96, 97, 98, 99),
)
"""For 0 to MOST_STEPS steps, where each begins: percent of the way from t = 999 down to t = 0."""


def gits(steps: int, sigma_max: float, sigma_min: float) -> list[float]:
    """Return the published ladder, spread evenly in log sigma over another range where it is not Stable Diffusion's.

    More than MOST_STEPS steps are interpolated in log sigma.
    """
    table = scaled_linear()
    percents = (*PERCENTS[min(steps, MOST_STEPS)], 100)
    levels = [log(table.sigma_at(9.99 * (100 - percent))) for percent in percents]
    if steps > MOST_STEPS:
        levels = _interpolate(levels, steps + 1)
    stretch = log(sigma_max / sigma_min) / log(table.sigma_max / table.sigma_min)
    return [sigma_min * exp(stretch * (level - levels[-1])) for level in levels[:-1]]


def _interpolate(values: list[float], count: int) -> list[float]:
    """Return `count` values at even distances along a piecewise linear curve."""
    last = len(values) - 1
    positions = [last * k / (count - 1) for k in range(count)]
    starts = [min(floor(position), last - 1) for position in positions]
    return [
        values[start] + (position - start) * (values[start + 1] - values[start])
        for start, position in zip(starts, positions, strict=True)
    ]
