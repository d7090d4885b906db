"""The thread that owns the device, a bounded queue of jobs for it, and a future for the result of each.

Jobs are taken step by step, so that a short one passes a long one and a cancelled one stops at once. The engine does
not know what a step does: `load` returns an object that begins jobs. What remains to be done to an image without the
device is done in other threads.

States go NEW, LOADING, READY, DRAINING, STOPPED; DEFUNCT follows from any of them when loading or the device fails.
HUNG follows from READY while a step does not end, and is left if it ends after all.
"""

import logging
import sys
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from enum import Enum
from threading import Condition, Thread
from time import perf_counter

from pipelines.cost import count_images
from pipelines.errors import DeviceLost, PipelineError, UnusableSetting
from pipelines.job import Work
from pipelines.types import BatchingMode, OnPreview
from server.config.toml import ConfigError, DeviceUnavailable
from server.engine.events import OnEvent, describe_end, ignore_event
from server.engine.model import ServedModel
from server.engine.queue import Forecast, Limits, Queue
from server.engine.stepper import LoadedModel, Stepper, set_error
from server.engine.ticket import Ticket
from server.engine.watchdog import Watchdog
from server.errors import Overloaded, Unavailable

log = logging.getLogger("naiad.engine")
FINISHING_THREADS = 2
"""Threads that finish images, next to the device thread."""
JOIN_SECONDS = 0.1
"""Seconds between two looks at whether the device thread hangs while it is waited for."""


class State(Enum):
    """State of an engine; the value is what `/ready` reports."""

    NEW = "new"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    HUNG = "hung"
    DEFUNCT = "defunct"


class Engine:
    """Runs jobs on the device thread.

    Args:
        load: called once, on the device thread.
        batching: "exact" evaluates each image on its own; "shared" lets images share passes of the network.
        step_timeout: seconds after which a step hangs that does not end, at the earliest; 0: never.
        on_event: called with what happens, see events.py.

    Attributes:
        failure: why the engine is DEFUNCT or HUNG.
        wrong_setup: which setting is why the model could not be loaded; None if none is.
        model: what is known about the model since it was loaded; None before, or if its files say everything.
        device_memory: bytes of the device's memory by what they are, when it last worked; nothing on a CPU.
    """

    def __init__(
        self,
        load: Callable[[], LoadedModel],
        limits: Limits | None = None,
        batching: BatchingMode = "exact",
        step_timeout: float = 0,
        on_event: OnEvent = ignore_event,
    ) -> None:
        self._load, self._limits, self._on_event = load, limits or Limits(), on_event
        self._batching: BatchingMode = batching
        self._changed = Condition()  # guards the queue and the state
        self._queue = Queue(self._limits.images)
        self._prepared: Ticket | None = None
        self._state = State.NEW
        self._thread = Thread(target=self._main, name="device", daemon=True)
        self.watchdog = Watchdog(step_timeout, self._report_hang)
        self._loaded: LoadedModel | None = None
        self.failure: str | None = None
        self.wrong_setup: str | None = None
        self.model: ServedModel | None = None
        self.device_memory: Mapping[str, int] = {}
        self._memory_read = 0.0

    @property
    def state(self) -> State:
        return self._state

    @property
    def waiting(self) -> int:
        """How many jobs wait, without those that have begun."""
        return self._queue.waiting

    @property
    def running(self) -> int:
        """How many jobs have begun and are not finished."""
        return len(self._queue.running)

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
        self.watchdog.start()

    def wait_ready(self) -> None:
        """Block until the model is loaded.

        Raises `ConfigError` if a setting is why it could not be, else `Unavailable`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._state is not State.LOADING)
        if self.wrong_setup is not None:
            raise ConfigError(self.wrong_setup)
        self._require_ready()

    def wait_end(self) -> str | None:
        """Block until the engine has stopped, failed or hangs; return why it has failed, or None."""
        with self._changed:
            self._changed.wait_for(lambda: self._state in (State.STOPPED, State.HUNG, State.DEFUNCT))
        return self.failure

    def submit(
        self, work: Work, priority: int = 0, on_preview: OnPreview | None = None, client: str = ""
    ) -> Ticket:
        """Queue a job; the arguments are those of `Ticket`.

        Raises `Unavailable` if the engine is not ready and `Overloaded` if the queue is full.
        """
        ticket = Ticket(work, self._drop, priority, on_preview, client)
        with self._changed:
            self.admit(count_images(work), client)
            self._queue.add(ticket)
            ticket.future.add_done_callback(lambda _: self._on_event(describe_end(ticket)))
            self._changed.notify_all()
        self._prepare_next()
        return ticket

    def admit(self, images: int = 1, client: str = "") -> None:
        """Raise what `submit` would raise now for a job, so that a request's images need not be decoded in vain."""
        self._require_ready()
        with self._changed:
            waiting, limit = self._queue.count_waiting(), self._limits.queue
            own, share = self._queue.count_waiting(client), self._limits.share
            asked = f"{images} images" if images > 1 else "another image"
            if waiting and waiting + images > limit:
                reason = f"the queue has no room for {asked}: {waiting} of {limit} wait"
                raise Overloaded(reason, self.expect_end())
            if own and own + images > share:
                reason = f"the queue has no room for {asked} of yours: {own} of {share} wait"
                raise Overloaded(reason, self.expect_end(client))

    def forecast(self, without: Ticket | None = None) -> list[Forecast]:
        """Return what is expected of the jobs, in the order in which the device takes them; one may be left out."""
        with self._changed:
            return [] if self._loaded is None else self._queue.forecast(self._loaded.is_active, without)

    def expect_end(self, client: str | None = None, without: Ticket | None = None) -> float | None:
        """Return in how many seconds the first job ends, of a client or of all, but for one that is dropped.

        Returns None if there is none.
        """
        forecasts = (each for each in self.forecast(without) if client in (None, each.ticket.client))
        return min((each.end for each in forecasts), default=None)

    def stop(self) -> None:
        """Refuse new jobs, finish the queued ones and end the thread.

        A model that is still loading is not waited for, nor a step that hangs, because nothing can interrupt them.
        """
        with self._changed:
            is_loading = self._state is State.LOADING
            if self._state in (State.LOADING, State.READY, State.HUNG):
                self._state = State.DRAINING
            self._changed.notify_all()
        while self._thread.is_alive() and not is_loading and not self.watchdog.is_hanging:
            self._thread.join(JOIN_SECONDS)

    def _drop(self, ticket: Ticket) -> None:
        """Remove a cancelled ticket that waits, so that the limit counts only clients that still do."""
        with self._changed:
            if ticket not in self._queue.running:
                self._queue.remove(ticket)

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
            self._run()
        finally:
            self.watchdog.stop()

    def _run(self) -> None:
        try:
            model = self._load()
            self.model, self._loaded = model.model, model
        except Exception as error:  # noqa: BLE001  # a model that cannot be loaded must not stop the HTTP server
            self._fail_loading(error)
            return
        with ThreadPoolExecutor(FINISHING_THREADS, thread_name_prefix="finishing") as finisher:
            has_failed = self._serve(model, finisher)
        if not has_failed:
            self._enter(State.STOPPED)  # now that all jobs have ended

    def _serve(self, model: LoadedModel, finisher: Executor) -> bool:
        """Run the jobs until the engine stops, and return whether it has failed."""
        args = self._batching, self._prepare_next, self.watchdog, self._on_event, finisher
        stepper = Stepper(model, self._queue, self._changed, *args)
        self._enter(State.READY)
        try:
            while self._wait_for_jobs():
                self._drop_failed(stepper)
                stepper.take_pass()
                self._read_memory(model)
        except Exception as error:  # noqa: BLE001  # without this thread, no job would ever end
            self._fail(error, stepper)
            return True
        return False

    def _read_memory(self, model: LoadedModel) -> None:
        """Read how much memory is in use, if that was a second ago; on another thread a device that hangs blocks."""
        if perf_counter() - self._memory_read > 1:
            self.device_memory, self._memory_read = model.device_memory, perf_counter()

    def _fail_loading(self, error: Exception) -> None:
        stays_wrong = isinstance(error, ConfigError | UnusableSetting) and not isinstance(
            error, DeviceUnavailable
        )
        self.wrong_setup = str(error) if stays_wrong else None
        is_known = isinstance(error, PipelineError | ValueError) and not isinstance(error, DeviceLost)
        self.failure = f"the model could not be loaded{f': {error}' if is_known else ''}"
        log.error("%s", self.failure, exc_info=None if is_known else error)
        self._enter(State.DEFUNCT)

    def _fail(self, error: Exception, stepper: Stepper) -> None:
        """Refuse all jobs, those that run and those that come: only a new process can use the device again."""
        subject = "the device" if isinstance(error, DeviceLost) else "the engine"
        self.failure = f"{subject} has failed; restart the server"
        log.critical("%s", self.failure, exc_info=error)
        self._enter(State.DEFUNCT)
        for ticket in self._queue.tickets:
            stepper.fail(ticket, Unavailable(self.failure))

    def _report_hang(self, seconds: float) -> None:
        """Refuse all jobs, because the device thread may never come back. On the watchdog's thread."""
        failure = f"a step on the device has not ended for {seconds:.0f} s; restart the server"
        frame = sys._current_frames().get(self._thread.ident or 0)  # pyright: ignore[reportPrivateUsage]
        log.critical("%s\n%s", failure, "".join(traceback.format_stack(frame)))
        with self._changed:
            self.failure = failure
            self._state = State.HUNG if self._state is State.READY else self._state
            tickets = self._queue.tickets
            self._changed.notify_all()
        for ticket in tickets:
            set_error(ticket, Unavailable(failure))

    def _drop_failed(self, stepper: Stepper) -> None:
        """Drop the jobs that were refused while a step hung that has ended now, and accept others again."""
        if self.failure is None:
            return
        for ticket in self._queue.tickets:
            stepper.fail(ticket, Unavailable(self.failure or ""))
        with self._changed:
            if self._state is State.HUNG:
                self._state, self.failure = State.READY, None
                log.warning("the step has ended after all; requests are accepted again")

    def _wait_for_jobs(self) -> bool:
        """Wait for something to do, and return whether there is; there is not once the engine has finished to stop."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._queue) or self._state in (State.DRAINING, State.HUNG))
            return len(self._queue) > 0 or self._state is State.HUNG

    def _prepare_next(self) -> None:
        """Let the model prepare the job that will begin next, while another one runs."""
        model = self._loaded
        with self._changed:
            if model is None or not self._queue.running:
                return
            ticket = self._queue.find_next(model.is_active)
            is_new, self._prepared = ticket is not self._prepared, ticket
        if is_new and ticket is not None:
            model.prepare(ticket.work)
