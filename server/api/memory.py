"""A bound on what all requests together hold in memory: bodies that arrive or wait, decoded images, responses."""

from types import TracebackType
from typing import Self

from pipelines.job import InitImage, RgbImage, UpscaleJob, VibeJob, Work
from server.errors import Overloaded

MIB = 1 << 20
DECODE_MEMORY = 768
"""MiB that decoding the images of one request may take for a moment: 33 million pixels in several copies."""
DECODE_LIMIT = 2
"""Requests that may decode images at a time."""
PARSE_COPIES = 4
"""Copies of a body that parsing it may take for a moment; one body is parsed at a time."""


def memory_for_bodies(limit: int, body_limit: int, cache: int, decode_limit: int = DECODE_LIMIT) -> int:
    """Return how many of `limit` MiB are left for bodies and images that wait; negative if there are none.

    `cache` is the size of the image cache in MiB.
    """
    return limit - cache - decode_limit * DECODE_MEMORY - PARSE_COPIES * body_limit


class Memory:
    """The bytes that all requests hold, of at most `limit`. Used only on the event loop's thread."""

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0

    def reserve(self) -> "Reservation":
        """Return a reservation of 0 bytes."""
        return Reservation(self)


class Reservation:
    """What one request holds, and the most it has held; a context manager that gives it back."""

    def __init__(self, memory: Memory) -> None:
        self._memory, self.size, self.largest = memory, 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hold(0)

    def resize(self, size: int) -> None:
        """Hold `size` bytes from now on; raise `Overloaded` if that is more than before and above the limit."""
        if size > self.size and self._memory.held + size - self.size > self._memory.limit:
            raise Overloaded("requests hold as much memory as api.memory_limit allows")
        self.hold(size)

    def hold(self, size: int) -> None:
        """Hold `size` bytes from now on, even above the limit: finished images are not thrown away."""
        self._memory.held += size - self.size
        self.size, self.largest = size, max(self.largest, size)


def measure_work(work: Work) -> int:
    """Return the bytes of the images that a job starts from."""
    if isinstance(work, UpscaleJob | VibeJob):
        return len(work.image.rgb)
    inits = (pass_.init for pass_ in work.passes)
    size = sum(len(init.image.rgb) + len(init.mask or b"") for init in inits if isinstance(init, InitImage))
    size += sum(len(control.image.rgb) for control in work.controls)
    sources = (vibe.source for vibe in work.vibes)
    return size + sum(
        len(source.rgb if isinstance(source, RgbImage) else source.values) for source in sources
    )
