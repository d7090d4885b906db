"""How often deep shrink halves a picture, and until when."""

from math import ceil, log

HALVED_ABOVE = (650, 400, 150)
"""The times, of 999 for pure noise, above which features are halved: once more above each.

The first is the end of a run's first third, as kohya-ss has it; the others follow at even distances. So of two halvings
one is undone at 650 and the other at 400.
"""


def halvings(area: int, known: int) -> int:
    """How often both sides of a picture of so many pixels are halved until no more are left than a model knows."""
    return max(0, ceil(log(area / known, 4)))
