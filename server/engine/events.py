"""What the engine reports of its work as it happens, for whoever counts it. The engine knows nothing of them."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pipelines.errors import Cancelled
from pipelines.job import UpscaleJob, VibeJob, Work
from pipelines.steps import Stage
from server.engine.ticket import CancelReason, Result, Ticket

JobKind: TypeAlias = Literal["generate", "upscale", "encode-vibe"]
Outcome: TypeAlias = Literal["done", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class JobBegan:
    """A job has begun, after it waited for some seconds."""

    kind: JobKind
    waited: float


@dataclass(frozen=True, slots=True)
class JobEnded:
    """A job has ended, begun or not.

    Attributes:
        seconds: of the device's work on it.
        reason: why it was cancelled.
        images, pixels: how many it gave.
    """

    kind: JobKind
    outcome: Outcome
    seconds: float
    images: int
    pixels: int
    reason: CancelReason | None = None


@dataclass(frozen=True, slots=True)
class PassTaken:
    """The steps of some images have been taken together; `rows` is how much of a pass they filled."""

    stage: Stage
    images: int
    rows: int
    seconds: float


@dataclass(frozen=True, slots=True)
class SharedPassFailed:
    """A pass that several images shared has failed, and is taken again image by image."""


@dataclass(frozen=True, slots=True)
class MemoryRanOut:
    """Memory ran out, and what the job does not need is freed to try again."""


@dataclass(frozen=True, slots=True)
class WeightsChanged:
    """The weights were changed for a job: its model came from "memory" or "disk", or LoRAs were switched."""

    source: Literal["memory", "disk", "loras"]
    seconds: float


Event: TypeAlias = JobBegan | JobEnded | PassTaken | SharedPassFailed | MemoryRanOut | WeightsChanged
OnEvent: TypeAlias = Callable[[Event], None]
"""Called on any thread; it must return at once and may not raise."""


def ignore_event(_: Event) -> None:
    """Do nothing."""


def name_kind(work: Work) -> JobKind:
    """Return the kind of a job."""
    if isinstance(work, UpscaleJob):
        return "upscale"
    return "encode-vibe" if isinstance(work, VibeJob) else "generate"


def describe_end(ticket: Ticket) -> JobEnded:
    """Return the event of a ticket whose future is done."""
    outcome = _find_outcome(ticket.future)
    images = ticket.future.result().images if outcome == "done" else ()
    pixels = sum(image.shape[0] * image.shape[1] for image in images)
    reason = ticket.reason if outcome == "cancelled" else None
    return JobEnded(name_kind(ticket.work), outcome, ticket.service, len(images), pixels, reason)


def _find_outcome(future: Future[Result]) -> Outcome:
    if future.cancelled() or isinstance(future.exception(), Cancelled):
        return "cancelled"
    return "done" if future.exception() is None else "failed"
