"""Takes the steps of jobs, on the device thread: which one is next, which share a pass, and what an error ends."""

import logging
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition
from time import perf_counter
from typing import Any, Protocol

from pipelines.errors import Cancelled, DeviceLost
from pipelines.job import Work
from pipelines.steps import Run, Step, take_steps
from pipelines.types import BatchingMode, OnPreview
from server.engine.model import ServedModel
from server.engine.queue import Queue
from server.engine.ticket import Result, RunningJob, Ticket

log = logging.getLogger("naiad.engine")
GONE = "the client no longer waits for this job"


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


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the engine takes on.

    Attributes:
        queue: images of jobs that wait, without those that have begun; a job for more waits alone.
        share: those of one client, likewise.
        images: images that have begun and are not finished; one of them runs.
        rows: of a pass that images of several jobs share.
    """

    queue: int = 128
    images: int = 4
    rows: int = 8

    @property
    def share(self) -> int:
        return max(self.queue // 2, 1)


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
    """

    def __init__(
        self,
        model: LoadedModel,
        queue: Queue,
        lock: Condition,
        limits: Limits,
        batching: BatchingMode,
        on_begin: Callable[[], None],
    ) -> None:
        self._model, self._queue, self._lock = model, queue, lock
        self._limits, self._batching, self._on_begin = limits, batching, on_begin

    def take_pass(self) -> None:
        """Take the step that is next, together with those that may share its pass."""
        for ticket in tuple(self._queue.running):
            if ticket.is_cancelled:
                self.fail(ticket, Cancelled(GONE))
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
                for found in self._iter_steps(ticket):
                    if not steps or self._may_share(steps, found):
                        steps.append(found)
                    if self._batching == "exact":
                        break
        return steps

    def _may_share(self, steps: Sequence[ImageStep], other: ImageStep) -> bool:
        """Return whether a step may be taken together with others, and there is room for it."""
        key, rows = steps[0].step.key, sum(each.step.rows for each in steps)
        return key is not None and other.step.key == key and rows + other.step.rows <= self._limits.rows

    def _iter_steps(self, ticket: Ticket) -> Generator[ImageStep]:
        """Yield the next step of each of a job's images; the job and its images begin where there is room for them."""
        self._activate(ticket.work)
        job = self._queue.running.get(ticket) or self._begin(ticket)
        if job is None:
            return
        for image in job.list_images():
            if job.is_started(image) or self._queue.has_room:
                with _measure((ticket,)):
                    step = job.find_step(image)
                if step is None:
                    self._finish_if_done(job)
                else:
                    yield ImageStep(ticket, image, step)

    def _activate(self, work: Work) -> None:
        is_active, started = self._model.is_active(work), perf_counter()
        self._model.activate(work, [ticket.work for ticket in self._queue.running])
        if not is_active:
            self._queue.learn_switch(perf_counter() - started)

    def _begin(self, ticket: Ticket) -> RunningJob | None:
        """Begin a job; return None if its client has gone."""
        if not ticket.future.set_running_or_notify_cancel():
            with self._lock:
                self._queue.remove(ticket)
            return None
        ticket.queue_seconds = perf_counter() - ticket.queued
        with _measure((ticket,)):
            run = self._model.begin(ticket.work, ticket.on_preview)
        with self._lock:
            job = self._queue.begin(ticket, run)
        self._on_begin()
        return job

    def _take(self, steps: Sequence[ImageStep]) -> None:
        """Take steps together, and send their results to the images."""
        for each in steps:
            each.ticket.progress = each.step.progress
        with _measure({each.ticket for each in steps}):
            answers = self._compute(steps)
        for each, answer in answers:
            job = self._queue.running.get(each.ticket)
            if job is not None:  # unless another of its images has failed
                with self._end_on_failure(each.ticket), _measure((each.ticket,)):
                    job.answer(each.image, answer)
                self._queue.learn_speed(each.ticket)
                self._finish_if_done(job)

    def _compute(self, steps: Sequence[ImageStep]) -> list[tuple[ImageStep, Any]]:
        """Return the results of steps; after an error each is taken on its own, so that only its own job fails."""
        if len(steps) > 1:
            try:
                return list(zip(steps, take_steps([each.step for each in steps]), strict=True))
            except DeviceLost:
                raise
            except Exception as error:  # noqa: BLE001  # which of the jobs it is for, the next attempt shows
                log.warning("a shared pass failed, and is taken again image by image: %s", error)
        answers: list[tuple[ImageStep, Any]] = []
        for each in steps:
            if each.ticket not in self._queue.running:
                continue  # another of its images has failed
            with self._end_on_failure(each.ticket):
                answers += zip([each], take_steps([each.step]), strict=True)
        return answers

    def _finish_if_done(self, job: RunningJob) -> None:
        """Set the result of a job whose images are all finished."""
        ticket = job.ticket
        if not job.is_finished or ticket not in self._queue.running:
            return
        with self._end_on_failure(ticket):
            output = job.finish()
            with self._lock:
                self._queue.remove(ticket)
            self._queue.learn_speed(ticket)
            times = ticket.queue_seconds or 0.0, ticket.service
            ticket.future.set_result(Result(output.images, output.sigmas, *times, output.vibe))

    @contextmanager
    def _end_on_failure(self, ticket: Ticket) -> Generator[None]:
        """End a job, and no other one, with the error that is raised; unless the device is lost."""
        try:
            yield
        except DeviceLost:
            raise
        except Exception as error:  # noqa: BLE001  # the job boundary
            self.fail(ticket, error)

    def fail(self, ticket: Ticket, error: Exception) -> None:
        """End a job with an error."""
        with self._lock:
            job = self._queue.remove(ticket)
        if job is not None:
            job.close()
        if ticket.future.running() or ticket.future.set_running_or_notify_cancel():
            # no asyncio future can hold a StopIteration; whoever waits for one would wait forever
            is_stop = isinstance(error, StopIteration)
            ticket.future.set_exception(RuntimeError("StopIteration") if is_stop else error)


@contextmanager
def _measure(tickets: Collection[Ticket]) -> Generator[None]:
    """Count the time inside the context as the device's work on jobs."""
    started = perf_counter()
    try:
        yield
    finally:
        seconds = perf_counter() - started
        for ticket in tickets:
            ticket.service += seconds
