"""Takes the steps of jobs, on the device thread: which one is next, which share a pass, and what an error ends."""

import logging
from collections.abc import Callable, Collection, Generator, Hashable, Mapping, Sequence
from concurrent.futures import Executor, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from threading import Condition
from time import perf_counter
from typing import Any, Protocol, TypeVar

from pipelines.errors import Cancelled, DeviceLost, OutOfMemory
from pipelines.job import Job, UpscaleJob, Work
from pipelines.steps import Run, Stage, Step, take_steps
from pipelines.types import BatchingMode, OnPreview
from server.engine.events import (
    JobBegan,
    MemoryRanOut,
    OnEvent,
    PassTaken,
    SharedPassFailed,
    WeightsChanged,
    ignore_event,
    name_kind,
)
from server.engine.model import Place, ServedModel
from server.engine.queue import Queue
from server.engine.ticket import GONE, RunningJob, Ticket
from server.engine.watchdog import WEIGHTS, Watchdog

log = logging.getLogger("naiad.engine")
Value = TypeVar("Value")


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

    def find_place(self, name: str, /) -> Place:
        """Return where a model is."""
        ...

    @property
    def device_memory(self) -> Mapping[str, int]:
        """Bytes of the device's memory by what they are."""
        ...

    def prepare(self, work: Work, /) -> None:
        """Begin what the next job needs while another one runs; returns at once, on any thread."""
        ...

    def is_active(self, work: Work, /) -> bool:
        """Return whether the steps of a job can be taken without changing weights first; on any thread."""
        ...

    def activate(self, work: Work, others: Collection[Work], /) -> None:
        """Bring the weights into the state that the steps of a job need.

        The steps of `others`, which have begun, must remain possible after another call.
        """
        ...

    def begin(self, work: Work, on_preview: OnPreview | None, /) -> Run:
        """Begin an active job; its steps are taken while it is active."""
        ...

    def free_memory(self, work: Work, others: Collection[Work], /) -> None:
        """Free what a job does not need.

        The steps of `others`, which have begun, must remain possible after a call of `activate`.
        """
        ...


@dataclass(frozen=True, slots=True)
class ImageStep:
    """The next step of one of a job's images."""

    ticket: Ticket
    image: int
    step: Step


class Stepper:
    """Takes the steps of a queue's jobs with a loaded model.

    Args:
        lock: guards the queue.
        on_begin: called after a job has begun.
        watchdog: watches the operations of the device.
        on_event: called with what happens.
        finisher: threads in which images that are drawn are finished while the device draws others; without them, that
            is done in between.
    """

    def __init__(
        self,
        model: LoadedModel,
        queue: Queue,
        lock: Condition,
        batching: BatchingMode,
        on_begin: Callable[[], None],
        watchdog: Watchdog,
        on_event: OnEvent = ignore_event,
        finisher: Executor | None = None,
    ) -> None:
        self._finisher = finisher
        self._model, self._queue, self._lock, self._watchdog = model, queue, lock, watchdog
        self._batching, self._on_begin, self._on_event = batching, on_begin, on_event
        self._room: dict[Hashable, float] = {}  # for the passes with a key, where memory did not suffice

    def take_pass(self) -> None:
        """Take the step that is next, together with those that may share its pass."""
        for ticket, job in tuple(self._queue.running.items()):
            if ticket.is_cancelled:
                self.fail(ticket, Cancelled(GONE))
            elif job.failure is not None:
                self.fail(ticket, job.failure)
        with self._lock:
            ranking = self._queue.rank(self._model.is_active)
        if ranking:
            self._take(self._gather(ranking))

    def _gather(self, ranking: Sequence[Ticket]) -> list[ImageStep]:
        """Return the next step of the first job, and under "shared" those of all images that may share its pass."""
        steps: list[ImageStep] = []
        for ticket in ranking if self._batching == "shared" else ranking[:1]:
            if steps and not self._model.is_active(ticket.work):
                continue
            with self._end_on_failure(ticket):
                for found in self._iter_steps(ticket, steps):
                    if not steps or self._may_share(steps, found):
                        steps.append(found)
                    elif found.step.stage == "encode":
                        self._take([found])  # so that the image can share the next pass
                    if self._batching == "exact":
                        break
        return steps

    def _may_share(self, steps: Sequence[ImageStep], other: ImageStep) -> bool:
        """Return whether a step may be taken together with others, and there is room for it."""
        key, share = steps[0].step.key, sum(each.step.share for each in (*steps, other))
        return key is not None and other.step.key == key and share <= self._room.get(key, 1)

    def _iter_steps(self, ticket: Ticket, gathered: Sequence[ImageStep]) -> Generator[ImageStep]:
        """Yield the next step of each of a job's images; the job and its images begin where there is room for them."""
        self._activate(ticket.work)
        job = self._queue.running.get(ticket)
        if job is None and self._has_room(ticket, gathered):
            job = self._begin(ticket)
        if job is None:
            return
        for image in job.list_images():
            if job.is_started(image) or self._has_room(ticket, gathered):
                with self._work_on((ticket,)):
                    step = job.find_step(image)
                if step is None:
                    self._finish_if_drawn(job)
                else:
                    yield ImageStep(ticket, image, step)

    def _has_room(self, ticket: Ticket, gathered: Sequence[ImageStep]) -> bool:
        """Return whether an image may begin.

        One that is to join a pass has the pass's size, and leaves room for a job that comes first later.
        """
        if not gathered:
            return self._queue.has_room
        is_alike = not _list_sizes(ticket.work).isdisjoint(_list_sizes(gathered[0].ticket.work))
        return is_alike and self._queue.has_spare_room

    def _activate(self, work: Work) -> None:
        is_active, started = self._model.is_active(work), perf_counter()
        place = "device" if isinstance(work, UpscaleJob) else self._model.find_place(work.model)
        with self._watchdog.watch(WEIGHTS):
            self._retry(work, lambda: self._model.activate(work, self._list_works()))
        if not is_active:
            seconds = perf_counter() - started
            self._queue.learn_switch(seconds)
            self._on_event(WeightsChanged("loras" if place == "device" else place, seconds))

    def _begin(self, ticket: Ticket) -> RunningJob | None:
        """Begin a job; return None if its client has gone, or it has failed while weights were changed for it."""
        if ticket.future.done() or not ticket.future.set_running_or_notify_cancel():
            with self._lock:
                self._queue.remove(ticket)
            return None
        ticket.queue_seconds = perf_counter() - ticket.queued
        with self._work_on((ticket,)):
            run = self._retry(ticket.work, lambda: self._model.begin(ticket.work, ticket.on_preview))
        with self._lock:
            job = self._queue.begin(ticket, run, self._finisher)
        self._on_begin()
        self._on_event(JobBegan(name_kind(ticket.work), ticket.queue_seconds))
        return job

    def _take(self, steps: Sequence[ImageStep]) -> None:
        """Take steps together, and send their results to the images."""
        for each in steps:
            each.ticket.progress = each.step.progress
        started, stage = perf_counter(), steps[0].step.stage if steps else "draw"
        with self._work_on({each.ticket for each in steps}, stage):
            answers = self._compute(steps)
        if answers:
            rows = sum(each.step.rows for each, _ in answers)
            self._on_event(PassTaken(stage, len(answers), rows, perf_counter() - started))
        for each, answer in answers:
            job = self._queue.running.get(each.ticket)
            if job is not None and not each.ticket.future.done():  # unless another of its images has failed
                with self._end_on_failure(each.ticket), self._work_on((each.ticket,)):
                    job.answer(each.image, answer)
                self._queue.learn_speed(each.ticket)
                self._finish_if_drawn(job)

    def _compute(self, steps: Sequence[ImageStep]) -> list[tuple[ImageStep, Any]]:
        """Return the results of steps; after an error each is taken on its own, so that only its own job fails."""
        if len(steps) > 1:
            try:
                return self._take_steps(steps)
            except DeviceLost:
                raise
            except Exception as error:  # noqa: BLE001  # which of the jobs it is for, the next attempt shows
                if isinstance(error, OutOfMemory):
                    self._room[steps[0].step.key] = sum(each.step.share for each in steps[:-1])
                log.warning("a shared pass failed, and is taken again image by image: %s", error)
                self._on_event(SharedPassFailed())
        answers: list[tuple[ImageStep, Any]] = []
        for each in steps:
            if each.ticket not in self._queue.running:
                continue  # another of its images has failed
            with self._end_on_failure(each.ticket):
                answers += self._take_steps([each])
        return answers

    def _take_steps(self, steps: Sequence[ImageStep]) -> list[tuple[ImageStep, Any]]:
        take = partial(take_steps, [each.step for each in steps])
        return list(zip(steps, self._retry(steps[0].ticket.work, take), strict=True))

    def _retry(self, work: Work, function: Callable[[], Value]) -> Value:
        """Call a function for a job, and once more if memory runs out, after all was freed that the job does not need.

        The second call is the same as the first: an image's pixels may not depend on what else was in memory.
        """
        try:
            return function()
        except OutOfMemory as error:
            log.warning("%s; trying again without all that is not needed for this job", error)
            self._on_event(MemoryRanOut())
        self._model.free_memory(work, self._list_works())
        return function()

    def _list_works(self) -> list[Work]:
        """Return the jobs that have begun."""
        return [ticket.work for ticket in self._queue.running]

    def _finish_if_drawn(self, job: RunningJob) -> None:
        """Let the device go on with other jobs if all images of one are drawn; it ends when they are finished."""
        ticket = job.ticket
        if not job.is_drawn or ticket not in self._queue.running:
            return
        with self._end_on_failure(ticket):
            with self._lock:
                self._queue.remove(ticket)
            self._queue.learn_speed(ticket)
            job.call_when_finished(partial(_set_result, job))

    @contextmanager
    def _end_on_failure(self, ticket: Ticket) -> Generator[None]:
        """End a job, and no other one, with the error that is raised; unless the device is lost."""
        try:
            yield
        except DeviceLost:
            raise
        except Exception as error:  # noqa: BLE001  # the job boundary
            self.fail(ticket, error)

    def fail(self, ticket: Ticket, error: BaseException) -> None:
        """End a job with an error, unless it has ended already."""
        with self._lock:
            job = self._queue.remove(ticket)
        if job is not None:
            job.close()
        set_error(ticket, error)

    @contextmanager
    def _work_on(self, tickets: Collection[Ticket], stage: Stage = "draw") -> Generator[None]:
        """Watch what happens inside the context, and count its time as the device's work on jobs."""
        started = perf_counter()
        with self._watchdog.watch() as operation:
            try:
                yield
            finally:
                seconds = 0.0 if operation.hangs else perf_counter() - started
                for ticket in tickets:
                    ticket.add_work(stage, seconds)


def _set_result(job: RunningJob) -> None:
    """End a job whose images are finished, or could not be. On any thread."""
    ticket = job.ticket
    try:
        result = job.finish()
    except Exception as error:  # noqa: BLE001  # the job boundary
        job.close()
        set_error(ticket, error)
        return
    with suppress(InvalidStateError):  # it hung
        ticket.future.set_result(result)


def set_error(ticket: Ticket, error: BaseException) -> None:
    """Let the client of a job know its error, unless the job has ended. On any thread."""
    future = ticket.future
    if not future.done() and (future.running() or future.set_running_or_notify_cancel()):
        # no asyncio future can hold a StopIteration; whoever waits for one would wait forever
        is_stop = isinstance(error, StopIteration)
        with suppress(InvalidStateError):  # it has ended on another thread by now
            future.set_exception(RuntimeError("StopIteration") if is_stop else error)


def _list_sizes(work: Work) -> set[tuple[int, int]]:
    return {(pass_.width, pass_.height) for pass_ in work.passes} if isinstance(work, Job) else set()
