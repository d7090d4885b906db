"""How long each part of loading a model takes."""

from collections.abc import Callable
from time import perf_counter


class LoadTimes:
    """Seconds of the parts of loading, which follow each other.

    Attributes:
        seconds: of each part so far, in their order.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock, self._last = clock, clock()
        self.seconds: dict[str, float] = {}

    def finish(self, part: str) -> None:
        """End a part, which began when the one before it ended. One that is repeated adds to its time."""
        now = self._clock()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now

    def __str__(self) -> str:
        """Such as `5.1 s: import 1.0, read 4.1`."""
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self.seconds.items())
        return f"{sum(self.seconds.values()):.1f} s: {parts}"
