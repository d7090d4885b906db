"""The one thread that owns the device: a bounded queue in front of it, a future for every ticket.

Knows nothing of what it runs: `load` returns something that draws jobs, in the thread where it will be used.
States go NEW, LOADING, READY, DRAINING, STOPPED, and DEFUNCT from anywhere when loading fails.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum
from threading import Condition, Thread
from time import perf_counter
from typing import Protocol

from pipelines.errors import Cancelled, PipelineError
from pipelines.job import Work
from pipelines.types import OnStep, Output, Pixels, Progress, Sigmas
from server.errors import Overloaded, Unavailable

log = logging.getLogger("naiad.engine")


class LoadedModel(Protocol):
    """A loaded model, as the engine sees it."""

    def run(self, work: Work, watch: OnStep, /) -> Output: ...


class State(Enum):
    """Where an engine is in its life; the value is what `/ready` says."""

    NEW = "new"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    DEFUNCT = "defunct"


@dataclass(frozen=True, slots=True)
class Result:
    """Finished work: its pictures, the sigmas they went down, the seconds they waited and were drawn for."""

    pictures: Sequence[Pixels]
    sigmas: Sigmas
    queue_seconds: float
    run_seconds: float


class Ticket:
    """Work in the queue: its future, how far it is, and a way to call it off."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.future: Future[Result] = Future()
        self.queued = perf_counter()
        self.progress: Progress | None = None
        self._unwanted = False

    def cancel(self) -> None:
        """Nobody waits any more: dropped from the queue, or stopped before its next evaluation."""
        self._unwanted = True
        self.future.cancel()

    def watch(self, step: Progress) -> None:
        """Called by the run before each evaluation."""
        if self._unwanted:
            raise Cancelled("nobody waits for this picture any more")
        self.progress = step


class Engine:
    """Runs jobs one after another on the device thread.

    Args:
        load: builds the model; called once, on the device thread.
        queue_limit: how many jobs may wait beside the one being drawn.
    """

    def __init__(self, load: Callable[[], LoadedModel], queue_limit: int = 64) -> None:
        self._load, self._queue_limit = load, queue_limit
        self._changed = Condition()
        self._waiting: deque[Ticket] = deque()
        self._state = State.NEW
        self._thread = Thread(target=self._main, name="device", daemon=True)
        self.failure: str | None = None

    @property
    def state(self) -> State:
        """Where the engine is now."""
        return self._state

    @property
    def waiting(self) -> int:
        """How many jobs wait, the one being drawn not counted."""
        return len(self._waiting)

    def start(self) -> None:
        """Begin to load; returns at once."""
        self._enter(State.LOADING)
        self._thread.start()

    def wait_ready(self) -> None:
        """Block until the model is loaded, or raise what kept it from loading."""
        with self._changed:
            self._changed.wait_for(lambda: self._state is not State.LOADING)
        self._require_ready()

    def submit(self, work: Work) -> Ticket:
        """Queue a job, or a picture to be enlarged.

        Raises:
            Unavailable: the engine is not ready.
            Overloaded: the queue is full.
        """
        ticket = Ticket(work)
        with self._changed:
            self.admit()
            self._waiting.append(ticket)
            self._changed.notify_all()
        return ticket

    def admit(self) -> None:
        """Refuse now what `submit` would refuse; asked before a request's pictures are unpacked."""
        self._require_ready()
        if len(self._waiting) >= self._queue_limit:
            raise Overloaded(len(self._waiting))

    def stop(self) -> None:
        """Take no more, finish what was taken, and end the thread."""
        with self._changed:
            if self._state in (State.LOADING, State.READY):
                self._state = State.DRAINING
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _require_ready(self) -> None:
        if self._state is State.LOADING:
            raise Unavailable("the model is still loading")
        if self._state is not State.READY:
            raise Unavailable(self.failure or f"the engine is {self._state.value}")

    def _enter(self, state: State) -> None:
        with self._changed:
            if not (self._state is State.DRAINING and state is State.READY):
                self._state = state
            self._changed.notify_all()

    def _main(self) -> None:
        """The only code that touches the device."""
        try:
            model = self._load()
        except Exception as error:  # noqa: BLE001  # a model that cannot load must not take the port down with it
            self._give_up(error)
            return
        self._enter(State.READY)
        while (ticket := self._take()) is not None:
            self._finish(ticket, model)
        self._enter(State.STOPPED)

    def _give_up(self, error: Exception) -> None:
        known = isinstance(error, PipelineError | ValueError)
        self.failure = f"the model could not be loaded: {error}" if known else "the model could not be loaded"
        log.error("%s", self.failure, exc_info=None if known else error)
        self._enter(State.DEFUNCT)

    def _take(self) -> Ticket | None:
        """The next job; None once the engine drains and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._state is State.DRAINING)
            return self._waiting.popleft() if self._waiting else None

    def _finish(self, ticket: Ticket, model: LoadedModel) -> None:
        if not ticket.future.set_running_or_notify_cancel():
            return
        started = perf_counter()
        try:
            output = model.run(ticket.work, ticket.watch)
        except Exception as error:  # noqa: BLE001  # the job boundary: one job's failure is that job's alone
            ticket.future.set_exception(error)
            return
        seconds = perf_counter() - started
        ticket.future.set_result(Result(output.images, output.sigmas, started - ticket.queued, seconds))
