"""Notices work of the device that does not end, like a kernel that hangs or a file on a server that is gone."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from time import monotonic

INTERVAL = 1.0
"""Seconds between two looks at the device thread."""
SLOWER = 10
"""Times the longest step so far that a step may take: one for a larger image, or on a busy machine, is no hang."""
WEIGHTS = 3
"""Times as long as a step that a change of weights may take: how fast a disk reads a model shows only at its end."""


@dataclass(slots=True, eq=False)
class Operation:
    """Work of the device thread that nothing can interrupt.

    Attributes:
        allowance: times as long as a step that it may take.
        seconds: for how long it has been seen.
    """

    allowance: int
    seconds: float = 0.0
    hangs: bool = False


class Watchdog:
    """Watches the operations of the device thread from a thread of its own.

    Only time in which this thread itself runs counts, so neither a computer that sleeps nor a process that is stopped
    looks like a hang.

    Args:
        timeout: seconds that every step may take; 0 to watch none.
        on_hang: called with the seconds, on the watchdog's thread, once for each operation that takes longer.
    """

    def __init__(self, timeout: float, on_hang: Callable[[float], None]) -> None:
        self._timeout, self._on_hang = timeout, on_hang
        self._now: Operation | None = None  # set on the device thread
        self._last: Operation | None = None
        self._longest = 0.0  # of the steps that ended
        self._looked = monotonic()
        self._stopped = Event()

    @property
    def is_hanging(self) -> bool:
        """Whether the device thread is in an operation that was reported and has not ended."""
        operation = self._now
        return operation is not None and operation.hangs

    def start(self) -> None:
        """Start the thread."""
        if self._timeout:
            Thread(target=self._run, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()

    @contextmanager
    def watch(self, allowance: int = 1) -> Generator[Operation]:
        """Count what happens inside the context as one operation; see `Operation`."""
        self._now = operation = Operation(allowance)
        try:
            yield operation
        finally:
            self._now = None

    def look(self, now: float) -> None:
        """Count the time since the last look for the operation that goes on; most of it is left out after a pause."""
        seconds, self._looked = min(now - self._looked, 2 * INTERVAL), now
        self.count(seconds)

    def count(self, seconds: float) -> None:
        """Count some seconds for the operation that goes on, and report it if they are too many."""
        last, self._last = self._last, self._now
        if last is not None and last is not self._last and last.allowance == 1 and not last.hangs:
            self._longest = max(self._longest, last.seconds)
        operation = self._last
        if operation is None or operation.hangs:
            return
        operation.seconds += seconds
        limit = operation.allowance * max(self._timeout, SLOWER * self._longest)
        if operation.seconds > limit:
            operation.hangs = True
            self._on_hang(operation.seconds)

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL):
            self.look(monotonic())
