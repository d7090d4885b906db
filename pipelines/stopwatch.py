"""The time that a device takes for each part of its work, measured without waiting for the device in between."""

from collections.abc import Sequence
from itertools import pairwise
from time import perf_counter
from typing import TypeAlias

import torch

Mark: TypeAlias = "float | torch.cuda.Event"
"""A point in the device's work."""


class Stopwatch:
    """Marks points in the work of a device, and measures the seconds between them.

    On CUDA a mark is an event in the calling thread's stream: work that is queued by then counts as before it, although
    the device may still be busy with it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> Mark:
        """Mark the point after all work that this thread has given to the device."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            return event
        if self._device.type == "mps":
            torch.mps.synchronize()
        return perf_counter()

    def measure(self, marks: Sequence[Mark]) -> list[float]:
        """Return the seconds between each mark and the next one; waits until the device has reached the last."""
        return [_subtract(after, before) for before, after in pairwise(marks)]


def _subtract(after: Mark, before: Mark) -> float:
    if isinstance(after, torch.cuda.Event) and isinstance(before, torch.cuda.Event):
        after.synchronize()
        return before.elapsed_time(after) / 1000
    assert isinstance(after, float)
    assert isinstance(before, float)
    return after - before
