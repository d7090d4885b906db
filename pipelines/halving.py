"""How often deep shrink halves a picture, and until when."""

from math import ceil, log

HALVED_ABOVE = (650, 200, 100)
"""The times, of 999 for pure noise, above which features are halved: once more above each.

The first is the end of a run's first third, as kohya-ss has it. Of two halvings one is undone there and the other at
200: undone at 400, lines come out broken, for they are decided between 650 and 200.
"""


def halvings(area: int, known: int) -> int:
    """How often both sides of a picture of so many pixels are halved until no more are left than a model knows."""
    return max(0, ceil(log(area / known, 4)))
