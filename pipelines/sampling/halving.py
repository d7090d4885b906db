"""The number of 2x downscales of deep shrink and of the pyramid, and the noise levels at which they end."""

from math import ceil, log, sqrt

DEEP_SHRINK_TIMES = (650, 200, 100)
"""Timesteps (999 is pure noise) that end deep shrink: features are downscaled once more above each of them.

The first is the end of a run's first third, as in kohya-ss' version. Of two downscales one ends there and the other at
200. If it ends at 400, lines break up: they are decided between 650 and 200.
"""
PYRAMID_NOISE = 1024.0
"""Noise level times side in pixels above which the pyramid estimates an image from a copy with half the sides.

Found on the demo model at 832x1216: with a lower value images blur, with a higher one lines break up.
"""


def count_downscales(area: float, known: int) -> int:
    """Return the number of 2x downscales until `area` is at most `known` pixels."""
    return max(0, ceil(log(area / known, 4)))


def count_pyramid_levels(width: int, height: int, known: int) -> int:
    """Return the number of 2x downscales for a pyramid; at most as many as divide both sides of the latents evenly."""
    times = count_downscales(width * height, known)
    while (width // 8) % 2**times or (height // 8) % 2**times:
        times -= 1
    return times


def pyramid_sigmas(width: int, height: int, times: int) -> tuple[float, ...]:
    """Return the sigmas above which a pyramid estimates a copy with the sides halved once, twice and so on.

    A copy with half the sides has half the noise. A copy is halved again where its own noise level times its own side
    (the square root of its area, in pixels) is above PYRAMID_NOISE.
    """
    return tuple(PYRAMID_NOISE * 4**level / sqrt(width * height) for level in range(times))
