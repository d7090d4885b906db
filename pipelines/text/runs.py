"""A parsed prompt: segments of runs, texts of equal weight. What all prompt syntaxes share."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

EMPHASIS = {"{": 1, "]": 1, "}": -1, "[": -1}
"""NAI's brackets, and how often each multiplies the weight of the following text by 1.05."""
MAX_WEIGHT = 1e6
"""Numbers and emphasis are clamped to this, because sums and products of larger ones could overflow."""

Run = tuple[str, float]


@dataclass(frozen=True, slots=True)
class Segment:
    """One part of a mix: its share, and its text as runs of equal weight (unclamped)."""

    mix: float
    runs: tuple[Run, ...]


def merge_runs(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Merge adjacent runs of equal weight and drop empty ones."""
    filled = (run for run in runs if run[0])
    groups = groupby(filled, key=itemgetter(1))
    return tuple(("".join(text for text, _ in group), weight) for weight, group in groups)


def parse_number(text: str) -> float:
    """Return a number, at most MAX_WEIGHT in size."""
    return clamp(float(text))


def clamp(weight: float) -> float:
    """Return a weight, at most MAX_WEIGHT in size."""
    return min(max(weight, -MAX_WEIGHT), MAX_WEIGHT)
