"""One row of `naiad bench`: pictures of one size, some at a time, drawn by an engine for clients in this process."""

from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field
from statistics import fmean, median
from threading import Event, current_thread
from time import perf_counter
from typing import TYPE_CHECKING, TypeAlias

from pipelines.steps import Stage
from pipelines.types import Size
from server.engine import events
from server.engine.engine import Engine
from server.engine.events import JobBegan, PassTaken
from server.engine.ticket import Result, Ticket
from server.request.resolve import ResolvedRequest

if TYPE_CHECKING:
    from pipelines.stopwatch import Mark, Stopwatch

Resolve: TypeAlias = Callable[[Size, int], ResolvedRequest]
"""Returns the request for a picture by its size and its number, which no other one has."""
Write: TypeAlias = Callable[[ResolvedRequest, Result], bytes]
"""Returns a picture's file."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Seconds from a request to its picture's file, and those of them in which the file was written."""

    seconds: float
    png: float


@dataclass(slots=True)
class Row:
    """What was measured.

    Attributes:
        planned: number of pictures to measure; fewer were drawn if it was interrupted.
        first: seconds until the pictures of the warm-up, `at_once` of them, were finished; None if they were not.
        wall: seconds in which the others were drawn.
        evaluations: of the UNet, each for one image.
        device: seconds of the device's work, by what it was for.
        memory: bytes by kind, at most.
        failure: why it ended early; None if it did not.
    """

    size: Size
    at_once: int
    planned: int
    first: float | None = None
    pictures: list[Drawn] = field(default_factory=list[Drawn])
    wall: float = 0.0
    evaluations: int = 0
    device: Mapping[Stage, float] = field(default_factory=dict[Stage, float])
    memory: Mapping[str, int] = field(default_factory=dict[str, int])
    failure: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether all pictures were drawn. Parts of others would count in what is derived from them all."""
        return len(self.pictures) == self.planned

    @property
    def seconds(self) -> tuple[float, float, float] | None:
        """Median, least and most seconds from a request to its file."""
        found = [each.seconds for each in self.pictures]
        return (median(found), min(found), max(found)) if found else None

    @property
    def pictures_per_minute(self) -> float | None:
        return 60 * self.planned / self.wall if self.is_complete else None

    @property
    def evaluations_per_second(self) -> float | None:
        """What the device achieved while it drew, without encoding and decoding."""
        drawing = self.device.get("draw", 0.0)
        return self.evaluations / drawing if drawing else None

    @property
    def stages(self) -> dict[str, float]:
        """Seconds for a picture by stage: the device's, and those of writing the file; empty if not all were drawn."""
        if not self.is_complete:
            return {}
        shares = {stage: seconds / self.planned for stage, seconds in self.device.items()}
        return {**shares, "png": fmean(each.png for each in self.pictures)}


class DeviceLog:
    """Times the engine's passes in the order in which the device takes them. `observe` is for its events."""

    def __init__(self, stopwatch: "Stopwatch") -> None:
        self._stopwatch = stopwatch
        self._events: list[tuple[JobBegan | PassTaken, Mark]] = []

    def observe(self, event: events.Event) -> None:
        """Note when a job has begun or a pass was taken; both are reported on the device thread."""
        if isinstance(event, JobBegan | PassTaken):
            self._events.append((event, self._stopwatch.mark()))

    def clear(self) -> None:
        """Drop what was noted."""
        self._events.clear()

    def summarize(self) -> tuple[int, dict[Stage, float]]:
        """Return the evaluations, and the seconds of each stage since the pass or the job's beginning before.

        The device may have nothing to do before a job begins; that time belongs to no stage.
        """
        noted = tuple(self._events)
        times = self._stopwatch.measure([mark for _, mark in noted])
        evaluations, stages = 0, dict[Stage, float]()
        for (event, _), seconds in zip(noted[1:], times, strict=True):
            if isinstance(event, PassTaken):
                stages[event.stage] = stages.get(event.stage, 0.0) + seconds
                evaluations += event.images * (event.stage == "draw")
        return evaluations, stages


class Clients:
    """Requests pictures of an engine, a fixed number at a time, each for a client of its own.

    None of them has asked for pictures before, or the engine would let it wait for those that it has had.
    """

    def __init__(self, engine: Engine, resolve: Resolve, write: Write) -> None:
        self._engine, self._resolve, self._write = engine, resolve, write
        self._number = 0

    def draw(self, size: Size, count: int, at_once: int) -> Generator[Drawn]:
        """Yield each picture when its file is written; the others are cancelled if an error ends it.

        Raises what the engine raises, and `Rejected` if the request is wrong.
        """
        first, self._number = self._number, self._number + count
        tickets, stop = set[Ticket](), Event()

        def draw_picture(number: int) -> Drawn:
            started = perf_counter()
            request = self._resolve(size, first + number)
            ticket = self._engine.submit(request.job, client=current_thread().name)
            tickets.add(ticket)
            if stop.is_set():  # just now, and without this ticket
                ticket.cancel()
            result, finished = ticket.future.result(), perf_counter()
            tickets.discard(ticket)  # or all pictures would stay in memory
            self._write(request, result)
            return Drawn(perf_counter() - started, perf_counter() - finished)

        pool = ThreadPoolExecutor(at_once, thread_name_prefix=f"client from {first}")
        try:
            for future in as_completed([pool.submit(draw_picture, number) for number in range(count)]):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            stop.set()
            for ticket in tuple(tickets):
                ticket.cancel()


def measure_row(
    row: Row, clients: Clients, log: DeviceLog, on_picture: Callable[[], None] = lambda: None
) -> None:
    """Draw the pictures of a row, after a warm-up of as many as are drawn at a time, and fill it in.

    If an error or an interrupt ends it, the row has what was measured until then.
    """
    started = perf_counter()
    with closing(clients.draw(row.size, row.at_once, row.at_once)) as pictures:
        for _ in pictures:
            on_picture()
    row.first = perf_counter() - started
    log.clear()
    started = perf_counter()
    try:
        with closing(clients.draw(row.size, row.planned, row.at_once)) as pictures:
            for picture in pictures:
                row.pictures.append(picture)
                row.wall = perf_counter() - started
                on_picture()
    finally:
        row.evaluations, row.device = log.summarize()
