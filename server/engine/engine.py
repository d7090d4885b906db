"""The thread that owns the device, a bounded queue of jobs for it, and a future for the result of each.

The engine does not know what it runs: `load` returns an object that runs jobs. States go NEW, LOADING, READY, DRAINING,
STOPPED; DEFUNCT follows from any of them when loading or the device fails.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import takewhile
from threading import Condition, Thread
from time import perf_counter
from typing import Protocol

from pipelines.errors import Cancelled, DeviceLost, PipelineError
from pipelines.job import EncodedVibe, UpscaleJob, Work
from pipelines.types import OnPreview, OnStep, Output, Pixels, Progress, Sigmas
from server.engine.model import ServedModel
from server.errors import Overloaded, Unavailable

log = logging.getLogger("naiad.engine")
MOST_OVERTAKING = 4
"""How many jobs may run before one that came first, because that one needs another model."""


class LoadedModel(Protocol):
    """A loaded model, as the engine uses it.

    Attributes:
        model: what is known about it since it was loaded; None if its files say everything.
    """

    @property
    def model(self) -> ServedModel | None: ...

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """The models that jobs may name, as known by now; read on any thread."""
        ...

    def find_place(self, name: str, /) -> str:
        """Return where a model is: "device", "memory" or "disk"."""
        ...

    def prepare(self, work: Work, /) -> None:
        """Begin what the next job needs while another one runs; returns at once, on any thread."""
        ...

    def run(self, work: Work, on_step: OnStep, on_preview: OnPreview | None, /) -> Output: ...


class State(Enum):
    """State of an engine; the value is what `/ready` reports."""

    NEW = "new"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    DEFUNCT = "defunct"


@dataclass(frozen=True, slots=True)
class Result:
    """The images of a job, the sigmas of its last pass, the seconds it waited and ran; or what else it gives."""

    images: "Sequence[Pixels]"
    sigmas: Sigmas
    queue_seconds: float
    run_seconds: float
    vibe: EncodedVibe | None = None


class Ticket:
    """A job in the queue, with its future and its progress.

    Args:
        drop: called with a cancelled ticket, to remove it from the queue.
        priority: tickets with a higher one are taken first.
        on_preview: called with previews of the job's images, on a thread of the model's.

    Attributes:
        queue_seconds: how long the job has waited; None while it does.
        overtaken: how many jobs ran before it though it was the first.
    """

    def __init__(
        self,
        work: Work,
        drop: "Callable[[Ticket], None] | None" = None,
        priority: int = 0,
        on_preview: OnPreview | None = None,
    ) -> None:
        self.work, self.priority, self.on_preview = work, priority, on_preview
        self.future: Future[Result] = Future()
        self.queued = perf_counter()
        self.queue_seconds: float | None = None
        self.progress: Progress | None = None
        self.overtaken = 0
        self._is_cancelled, self._drop = False, drop
        self._at_end: list[Callable[[bool], None]] = []

    def call_at_end(self, function: Callable[[bool], None]) -> None:
        """Call a function with whether the job succeeded, once: when it ends, or as soon as it is cancelled.

        It is called on any thread, and before whoever waits for the future knows the result.
        """
        self._at_end.append(function)
        self.future.add_done_callback(lambda future: self._end(_has_succeeded(future)))

    def _end(self, has_succeeded: bool) -> None:
        with suppress(IndexError):  # the list is empty from then on; `pop` is atomic
            self._at_end.pop()(has_succeeded)

    def cancel(self) -> None:
        """Drop the job from the queue, or stop it before its next evaluation."""
        self._is_cancelled = True
        if self._drop is not None:
            self._drop(self)
        self.future.cancel()
        self._end(False)

    def watch(self, step: Progress) -> None:
        """Record the progress, or raise `Cancelled`; the model calls this before each evaluation."""
        if self._is_cancelled:
            raise Cancelled("the client no longer waits for this job")
        self.progress = step


def _has_succeeded(future: "Future[Result]") -> bool:
    return not future.cancelled() and future.exception() is None


class Engine:
    """Runs jobs one after another on the device thread.

    `load` is called once, on the device thread. At most `queue_limit` jobs wait, the running one not counted. They run
    in the order of the queue, except that a job which needs another model lets up to MOST_OVERTAKING others go first.

    Attributes:
        failure: why the engine is DEFUNCT.
        model: what is known about the model since it was loaded; None before, or if its files say everything.
    """

    def __init__(self, load: Callable[[], LoadedModel], queue_limit: int = 64) -> None:
        self._load, self._queue_limit = load, queue_limit
        self._changed = Condition()
        self._waiting: deque[Ticket] = deque()
        self._running: Ticket | None = None
        self._state = State.NEW
        self._thread = Thread(target=self._main, name="device", daemon=True)
        self._loaded: LoadedModel | None = None
        self.failure: str | None = None
        self.model: ServedModel | None = None

    @property
    def state(self) -> State:
        return self._state

    @property
    def waiting(self) -> int:
        """How many jobs wait, the running one not counted."""
        return len(self._waiting)

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """The models that jobs may name, as known by now; none before the first is loaded."""
        return {} if self._loaded is None else self._loaded.models

    def find_place(self, name: str) -> str:
        """Return where a model is: on the "device", in "memory", or on "disk" only."""
        return "disk" if self._loaded is None else self._loaded.find_place(name)

    @property
    def is_running(self) -> bool:
        """Whether the device thread exists, as it still may after `stop`."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the device thread, which loads the model. Does not wait for it."""
        self._enter(State.LOADING)
        self._thread.start()

    def wait_ready(self) -> None:
        """Block until the model is loaded, or raise `Unavailable` if it could not be."""
        with self._changed:
            self._changed.wait_for(lambda: self._state is not State.LOADING)
        self._require_ready()

    def wait_end(self) -> str | None:
        """Block until the engine has stopped or failed; return why it has failed, or None."""
        with self._changed:
            self._changed.wait_for(lambda: self._state in (State.STOPPED, State.DEFUNCT))
        return self.failure

    def submit(self, work: Work, priority: int = 0, on_preview: OnPreview | None = None) -> Ticket:
        """Queue a job behind those of the same priority, and before those of a lower one.

        Raises `Unavailable` if the engine is not ready and `Overloaded` if the queue is full.
        """
        ticket = Ticket(work, self._drop, priority, on_preview)
        with self._changed:
            self.admit()
            lower = (index for index, other in enumerate(self._waiting) if other.priority < priority)
            self._waiting.insert(next(lower, len(self._waiting)), ticket)
            self._changed.notify_all()
        self._prepare_next()
        return ticket

    def _prepare_next(self) -> None:
        """Let the model prepare the next job, unless the running one has yet to take what was prepared for it."""
        with self._changed:
            is_starting = self._running is not None and self._running.progress is None
            work = self._find_next().work if self._waiting and not is_starting else None
        if self._loaded is not None and work is not None:
            self._loaded.prepare(work)

    def _watch(self, ticket: Ticket, step: Progress) -> None:
        """Record the progress of the running job; prepare the next one when it has begun."""
        is_first = ticket.progress is None
        ticket.watch(step)
        if is_first:
            self._prepare_next()

    def admit(self) -> None:
        """Raise what `submit` would raise now, so that a request's images need not be decoded in vain."""
        self._require_ready()
        if len(self._waiting) >= self._queue_limit:
            raise Overloaded(f"{len(self._waiting)} requests are waiting already; try again shortly")

    def stop(self) -> None:
        """Refuse new jobs, finish the queued ones and end the thread.

        A model that is still loading is not waited for, because nothing can interrupt that.
        """
        with self._changed:
            is_loading = self._state is State.LOADING
            if self._state in (State.LOADING, State.READY):
                self._state = State.DRAINING
            self._changed.notify_all()
        if self._thread.is_alive() and not is_loading:
            self._thread.join()

    def _drop(self, ticket: Ticket) -> None:
        """Remove a ticket from the queue, so that the limit counts only clients that still wait."""
        with self._changed, suppress(ValueError):  # it runs already, or has ended
            self._waiting.remove(ticket)

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
        """Load the model and run the jobs. No other code uses the device."""
        try:
            model = self._load()
            self.model, self._loaded = model.model, model
        except Exception as error:  # noqa: BLE001  # a model that cannot be loaded must not stop the HTTP server
            self._fail_loading(error)
            return
        self._enter(State.READY)
        while (ticket := self._take()) is not None:
            self._run(ticket, model)
            self._running = None
        if self._state is not State.DEFUNCT:
            self._enter(State.STOPPED)

    def _fail_loading(self, error: Exception) -> None:
        is_known = isinstance(error, PipelineError | ValueError)
        self.failure = f"the model could not be loaded{f': {error}' if is_known else ''}"
        log.error("%s", self.failure, exc_info=None if is_known else error)
        self._enter(State.DEFUNCT)

    def _fail_device(self, error: DeviceLost, running: Ticket) -> None:
        """Refuse the running job, all waiting and all later ones: only a new process can use the device again."""
        self.failure = "the device has failed; restart the server"
        log.critical("%s", self.failure, exc_info=error)
        self._enter(State.DEFUNCT)
        running.future.set_exception(Unavailable(self.failure))
        while self._waiting:
            future = self._waiting.popleft().future
            if future.set_running_or_notify_cancel():
                future.set_exception(Unavailable(self.failure))

    def _take(self) -> Ticket | None:
        """Return the next job, or None once no job is left and none will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._state in (State.DRAINING, State.DEFUNCT))
            if not self._waiting:
                return None
            ticket = self._find_next()
            if ticket is not self._waiting[0]:
                self._waiting[0].overtaken += 1
            self._waiting.remove(ticket)
            self._running = ticket
            return ticket

    def _find_next(self) -> Ticket:
        """Return the waiting job that runs next: the first one that is ready, if it may overtake the first of all."""
        first = self._waiting[0]
        if first.overtaken >= MOST_OVERTAKING or self._is_ready(first):
            return first
        equal = takewhile(lambda ticket: ticket.priority == first.priority, self._waiting)
        return next(filter(self._is_ready, equal), first)

    def _is_ready(self, ticket: Ticket) -> bool:
        """Whether no model has to be moved or loaded for a job."""
        return isinstance(ticket.work, UpscaleJob) or self.find_place(ticket.work.model) == "device"

    def _run(self, ticket: Ticket, model: LoadedModel) -> None:
        """Run a job and set its result or its error."""
        if not ticket.future.set_running_or_notify_cancel():
            return
        started = perf_counter()
        ticket.queue_seconds = started - ticket.queued
        try:
            output = model.run(ticket.work, partial(self._watch, ticket), ticket.on_preview)
        except DeviceLost as error:
            self._fail_device(error, ticket)
            return
        except Exception as error:  # noqa: BLE001  # the job boundary: an error ends this job and no other
            # no asyncio future can hold a StopIteration; whoever waits for one would wait forever
            ticket.future.set_exception(
                RuntimeError("StopIteration") if isinstance(error, StopIteration) else error
            )
            return
        seconds = perf_counter() - started
        times = ticket.queue_seconds, seconds
        ticket.future.set_result(Result(output.images, output.sigmas, *times, output.vibe))
