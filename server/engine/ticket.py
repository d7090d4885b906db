"""A job in the engine: what its client waits for, and how far it is."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from time import perf_counter
from typing import Any, Literal, TypeAlias

from pipelines.cost import count_images, estimate_cost
from pipelines.errors import Cancelled
from pipelines.job import EncodedVibe, Work
from pipelines.steps import Run, Stage, Step
from pipelines.types import OnPreview, Pixels, Progress, Sigmas

GONE = "the client no longer waits for this job"
CancelReason: TypeAlias = Literal["disconnect", "request", "deadline"]
"""Why a job is cancelled: its client has hung up or has asked for it, or its deadline has passed."""


@dataclass(frozen=True, slots=True)
class Result:
    """The images of a job, the sigmas of its last pass, the seconds it waited and ran; or what else it gives.

    Attributes:
        stages: seconds by what the work was for; together they are `run_seconds`. All but "finish" is the device's.
    """

    images: Sequence[Pixels]
    sigmas: Sigmas
    queue_seconds: float
    run_seconds: float
    vibe: EncodedVibe | None = None
    stages: Mapping[Stage, float] = field(default_factory=dict[Stage, float])


class Ticket:
    """A job in the engine, with its future and its progress.

    Args:
        drop: called with a cancelled ticket, to remove it from the queue.
        priority: of its client, see order.py.
        on_preview: called with previews of the job's images, on a thread of the model's.
        client: whose job it is; clients have equal shares of the device.

    Attributes:
        queue_seconds: how long the job waited before it began; None until then.
        progress: of the step that is taken now; None until the job has begun.
        service: seconds of the device's work on the job.
        stages: these seconds by what the work was for.
        reason: why the job was cancelled; None if it was not.
    """

    def __init__(
        self,
        work: Work,
        drop: "Callable[[Ticket], None] | None" = None,
        priority: int = 0,
        on_preview: OnPreview | None = None,
        client: str = "",
    ) -> None:
        self.work, self.priority, self.on_preview, self.client = work, priority, on_preview, client
        self.future: Future[Result] = Future()
        self.queued = perf_counter()
        self.queue_seconds: float | None = None
        self.progress: Progress | None = None
        self.reason: CancelReason | None = None
        self._drop = drop
        self.service, self.stages = 0.0, dict[Stage, float]()
        self._at_end: list[Callable[[bool], None]] = []

    @cached_property  # the device thread asks for it before each of its passes
    def amount(self) -> float:
        """The work for all images, see pipelines/cost.py."""
        return measure(self.work)

    @property
    def is_cancelled(self) -> bool:
        """Whether the client no longer waits for the job."""
        return self.reason is not None

    def add_work(self, stage: Stage, seconds: float) -> None:
        """Count seconds of the device's work."""
        self.service += seconds
        self.stages[stage] = self.stages.get(stage, 0.0) + seconds

    def find_waited(self, now: float) -> float:
        """Return the seconds since the job was queued in which the device did not work on it."""
        return now - self.queued - self.service

    def call_at_end(self, function: Callable[[bool], None]) -> None:
        """Call a function with whether the job succeeded, once: when it ends, or as soon as it is cancelled.

        It is called on any thread, and before whoever waits for the future knows the result.
        """
        self._at_end.append(function)
        self.future.add_done_callback(lambda future: self._end(_has_succeeded(future)))

    def _end(self, has_succeeded: bool) -> None:
        with suppress(IndexError):  # the list is empty from then on; `pop` is atomic
            self._at_end.pop()(has_succeeded)

    def cancel(self, reason: CancelReason = "disconnect") -> None:
        """Drop the job from the queue, or stop it before its next step."""
        self.reason = self.reason or reason
        if self._drop is not None:
            self._drop(self)
        self.future.cancel()
        self._end(False)


def measure(work: Work) -> float:
    """Return the work for all images of a job."""
    return estimate_cost(work) * count_images(work)


def _has_succeeded(future: Future[Result]) -> bool:
    return not future.cancelled() and future.exception() is None


class RunningJob:
    """A ticket whose job has begun: the coroutines of its images, their next steps and their results.

    An image is started by asking for its step. It is drawn when it has no further one, and is finished meanwhile.

    Args:
        finisher: finishes images that are drawn; without one they are finished at once.
    """

    def __init__(self, ticket: Ticket, run: Run, finisher: Executor | None = None) -> None:
        self.ticket, self._run, self._finisher = ticket, run, finisher
        self._steps: dict[int, Step] = {}
        self._results: dict[int, Future[Any]] = {}  # of the images that are drawn
        self._finishing: dict[int, float] = {}  # seconds

    @property
    def started(self) -> int:
        """How many images have been started and are not drawn."""
        return len(self._steps)

    @property
    def done(self) -> float:
        """Share of the job's work that is done. It may be read on any thread."""
        begun = sum(step.progress.done for step in tuple(self._steps.values()))
        return (len(self._results) + begun) / len(self._run.images)

    @property
    def is_drawn(self) -> bool:
        """Whether all images are drawn."""
        return len(self._results) == len(self._run.images)

    @property
    def failure(self) -> BaseException | None:
        """Why an image could not be finished."""
        ended = (result for result in self._results.values() if result.done() and not result.cancelled())
        return next((result.exception() for result in ended if result.exception() is not None), None)

    def list_images(self) -> tuple[int, ...]:
        """Return the images that are not drawn, those that have been started first."""
        others = (index for index in range(len(self._run.images)) if index not in self._results)
        return (*self._steps, *(index for index in others if index not in self._steps))

    def is_started(self, index: int) -> bool:
        """Whether an image has been started and is not drawn."""
        return index in self._steps

    def find_step(self, index: int) -> Step | None:
        """Return the next step of an image, which is started if it has to be; None if it has no steps at all."""
        if index not in self._steps:
            self.answer(index, None)
        return self._steps.get(index)

    def answer(self, index: int, result: object) -> None:
        """Send an image the result of its step, or start it; its next step or its result is kept."""
        try:
            self._steps[index] = self._run.images[index].send(result)
        except StopIteration as stop:
            self._steps.pop(index, None)
            self._results[index] = self._start_finishing(index, stop.value)

    def _start_finishing(self, index: int, image: object) -> Future[Any]:
        finish_image = self._run.finish_image
        if finish_image is not None and self._finisher is not None:
            return self._finisher.submit(self._finish_image, finish_image, index, image)
        finished: Future[Any] = Future()
        finished.set_result(image if finish_image is None else finish_image(image))
        return finished

    def _finish_image(self, finish_image: Callable[[Any], Any], index: int, image: object) -> object:
        if self.ticket.is_cancelled:
            raise Cancelled(GONE)
        started = perf_counter()
        finished = finish_image(image)
        self._finishing[index] = perf_counter() - started
        return finished

    def call_when_finished(self, function: Callable[[], object]) -> None:
        """Call a function once all images, which are drawn, are finished: at once, or on the finisher's thread."""
        _call_after(iter(tuple(self._results.values())), function)

    def finish(self) -> Result:
        """Return the result of a job whose images are all finished, or raise why one of them could not be."""
        output = self._run.finish([self._results[index].result() for index in range(len(self._run.images))])
        stages, finishing = dict(self.ticket.stages), sum(self._finishing.values())
        if finishing:
            stages["finish"] = finishing
        times = self.ticket.queue_seconds or 0.0, self.ticket.service + finishing
        return Result(output.images, output.sigmas, *times, output.vibe, stages)

    def close(self) -> None:
        """Drop what the images hold, and finish no further one."""
        for result in self._results.values():
            result.cancel()
        for image in self._run.images:
            with suppress(Exception):
                image.close()


def _call_after(futures: Iterator[Future[Any]], function: Callable[[], object]) -> None:
    """Call a function when all futures are done, on the thread that ends the last one."""
    for future in futures:
        if not future.done():
            future.add_done_callback(lambda _: _call_after(futures, function))
            return
    function()
