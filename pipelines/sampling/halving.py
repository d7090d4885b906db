"""How often a picture is halved, and until when: its features (deep_shrink.py), or the picture itself (pyramid.py)."""

from math import ceil, log, sqrt

DEEP_SHRINK_TIMES = (650, 200, 100)
"""The times, of 999 for pure noise, above which features are halved: once more above each.

The first is the end of a run's first third, as kohya-ss has it. Of two halvings one is undone there and the other at
200: undone at 400, lines come out broken, for they are decided between 650 and 200.
"""
PYRAMID_NOISE = 1024.0
"""The noise level, times the side in pixels, above which a copy with half the sides is asked about.

Seen on the demo model at 832x1216: left later, pictures blur, and sooner, lines break up.
"""


def count_downscales(area: float, known: int) -> int:
    """How often both sides of a picture of so many pixels are halved until no more are left than a model knows."""
    return max(0, ceil(log(area / known, 4)))


def count_pyramid_levels(width: int, height: int, known: int) -> int:
    """The same for a pyramid, but no oftener than the latents can be halved evenly."""
    times = count_downscales(width * height, known)
    while (width // 8) % 2**times or (height // 8) % 2**times:
        times -= 1
    return times


def pyramid_sigmas(width: int, height: int, times: int) -> tuple[float, ...]:
    """The sigmas above which a pyramid asks about the picture with its sides halved once, twice and so on.

    A copy with half the sides has half the noise, so each is left when its own noise times its own side is HIDDEN.
    """
    return tuple(PYRAMID_NOISE * 4**level / sqrt(width * height) for level in range(times))
