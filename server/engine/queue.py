"""The jobs of an engine that are not drawn, and the order in which they are served."""

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import count
from time import perf_counter

from pipelines.cost import count_images
from pipelines.job import Work
from pipelines.steps import Run
from server.engine.order import Claim, Shares, rank_claims
from server.engine.ticket import RunningJob, Ticket

FIRST_SPEED = 0.1
"""Seconds for a unit of work (see pipelines/cost.py), until jobs have shown them."""
MEMORY = 0.8
"""Share of what was measured that counts after the next measurement."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the engine takes on.

    Attributes:
        queue: images of jobs that wait, without those that have begun; a job for more waits alone.
        share: those of one client, likewise.
        images: images that have begun and are not drawn; under "exact" one of them runs.
    """

    queue: int = 128
    images: int = 4

    @property
    def share(self) -> int:
        return max(self.queue // 2, 1)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is expected of a job: when it begins and ends, in seconds from now; it has begun if `start` is 0.

    Attributes:
        done: share of its steps that have been taken.
    """

    ticket: Ticket
    start: float
    end: float
    done: float


class Queue:
    """Tickets by their order; not safe for several threads.

    Args:
        most_started: images that have begun and are not drawn. Where there are as many, no further one begins.

    Attributes:
        running: the jobs that have begun.
    """

    def __init__(self, most_started: int) -> None:
        self._most_started = most_started
        self._numbers: dict[Ticket, int] = {}
        self._next_number = count()
        self._speed, self._switch_seconds = FIRST_SPEED, 0.0
        self._seconds, self._work = FIRST_SPEED, 1.0  # of the last jobs, the older the less they count
        self._shares = Shares()
        self.running: dict[Ticket, RunningJob] = {}

    def __len__(self) -> int:
        """Return the number of jobs, waiting and running."""
        return len(self._numbers)

    @property
    def waiting(self) -> int:
        """How many jobs have not begun."""
        return len(self._numbers) - len(self.running)

    def count_waiting(self, client: str | None = None) -> int:
        """Return how many images the jobs have that have not begun, of a client or of all."""
        waiting = (ticket for ticket in self._numbers if ticket not in self.running)
        return sum(count_images(ticket.work) for ticket in waiting if client in (None, ticket.client))

    @property
    def tickets(self) -> tuple[Ticket, ...]:
        """All tickets, in the order in which they came."""
        return tuple(self._numbers)

    @property
    def has_room(self) -> bool:
        """Whether another image may begin."""
        return self._started < self._most_started

    @property
    def has_spare_room(self) -> bool:
        """Whether there is room for another image once a further one has begun."""
        return self._started + 1 < self._most_started

    @property
    def _started(self) -> int:
        return sum(job.started for job in self.running.values())

    def add(self, ticket: Ticket) -> None:
        """Add a ticket."""
        self._numbers[ticket] = next(self._next_number)

    def remove(self, ticket: Ticket) -> RunningJob | None:
        """Remove a ticket, if it is there, and return its job if that has begun."""
        self._numbers.pop(ticket, None)
        job = self.running.pop(ticket, None)
        if job is not None:
            self._shares.add(ticket.client, ticket.service, perf_counter())
        return job

    def begin(self, ticket: Ticket, run: Run, finisher: Executor | None = None) -> RunningJob:
        """Record that a ticket's job has begun; `finisher` finishes its images, see `RunningJob`."""
        self.running[ticket] = job = RunningJob(ticket, run, finisher)
        return job

    def rank(self, is_active: Callable[[Work], bool]) -> list[Ticket]:
        """Return the tickets whose jobs can go on or begin, in the order in which they should.

        Args:
            is_active: whether the steps of a job can be taken without changing weights first.
        """
        return self._sort(
            self._numbers if self.has_room else [each for each, job in self.running.items() if job.started],
            is_active,
        )

    def find_next(self, is_active: Callable[[Work], bool]) -> Ticket | None:
        """Return the ticket that will begin next; None if none waits."""
        waiting = [ticket for ticket in self._numbers if ticket not in self.running]
        return next(iter(self._sort(waiting, is_active)), None)

    def forecast(self, is_active: Callable[[Work], bool], without: Ticket | None = None) -> list[Forecast]:
        """Return when each job is expected to begin and to end, in their order, if no other one comes.

        Args:
            without: a job that is dropped.
        """
        forecasts: list[Forecast] = []
        now = 0.0
        for ticket in self._sort([each for each in self._numbers if each is not without], is_active):
            job, start = self.running.get(ticket), now
            now += self.estimate_remaining(ticket)
            begun = (0.0, now, job.done) if job is not None else (start, now, 0.0)
            forecasts.append(Forecast(ticket, *begun))
        return forecasts

    def _sort(self, tickets: Iterable[Ticket], is_active: Callable[[Work], bool]) -> list[Ticket]:
        now = perf_counter()  # once, so that equal jobs stay in their order
        claims = {self._make_claim(ticket, is_active(ticket.work), now): ticket for ticket in tickets}
        return [claims[claim] for claim in rank_claims(claims)]

    def _make_claim(self, ticket: Ticket, is_active: bool, now: float) -> Claim:
        switching = 0.0 if is_active else self._switch_seconds
        remaining = self.estimate_remaining(ticket) + switching
        served, waited = self._shares.get(ticket.client, now), ticket.find_waited(now)
        return Claim(self._numbers[ticket], ticket.client, remaining, waited, ticket.priority, served)

    def estimate_remaining(self, ticket: Ticket) -> float:
        """Return the seconds that the device still needs for a job."""
        job = self.running.get(ticket)
        return self._speed * ticket.amount * (1.0 if job is None else 1 - job.done)

    def learn_speed(self, ticket: Ticket) -> None:
        """Note how long a job took, the less the smaller it is; one that shows to be slower counts until it ends."""
        job, work = self.running.get(ticket), ticket.amount
        if job is None:
            self._seconds = MEMORY * self._seconds + ticket.service
            self._work = MEMORY * self._work + work
            self._speed = self._seconds / self._work
        elif job.done:
            self._speed = max(self._speed, ticket.service / (work * job.done))

    def learn_switch(self, seconds: float) -> None:
        """Note how long it took to change weights for a job."""
        self._switch_seconds = _average(self._switch_seconds, seconds)


def _average(mean: float, value: float) -> float:
    return MEMORY * mean + (1 - MEMORY) * value
