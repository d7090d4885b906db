"""How long the parts of a request took, for its header `Server-Timing`, its line in the log, and its trace."""

from collections.abc import Generator
from contextlib import contextmanager
from time import perf_counter
from typing import NamedTuple

from starlette.requests import Request
from starlette.types import Scope

from pipelines.steps import Stage
from server.engine.ticket import Result, Ticket

STAGES: tuple[Stage, ...] = ("encode", "draw", "upscale", "decode", "finish")
"""In the order of an image's way."""


class Part(NamedTuple):
    """A part of a request: when it began, by `perf_counter`, and its seconds."""

    started: float
    seconds: float


def get_timings(scope: Scope) -> dict[str, Part]:
    """Return what has been measured of a request, by its name."""
    return scope.setdefault("timings", {})


def add_queue(scope: Scope, ticket: Ticket) -> None:
    """Add the time that a job was in the queue, if it has begun."""
    if ticket.queue_seconds is not None:
        get_timings(scope)["queue"] = Part(ticket.queued, ticket.queue_seconds)


def add_result(scope: Scope, ticket: Ticket, result: Result) -> None:
    """Add what a job took, in the queue and afterwards, as if the stages of its images had not alternated."""
    add_queue(scope, ticket)
    started = ticket.queued + result.queue_seconds
    for stage in STAGES:
        if stage in result.stages:
            get_timings(scope)[stage] = Part(started, result.stages[stage])
            started += result.stages[stage]


@contextmanager
def measure_part(request: Request, name: str) -> Generator[None]:
    """Add the time inside the context."""
    started = perf_counter()
    yield
    get_timings(request.scope)[name] = Part(started, perf_counter() - started)


def format_timings(scope: Scope) -> str:
    """Return the value of `Server-Timing`, in milliseconds."""
    timings = get_timings(scope).items()
    return ", ".join(f"{name};dur={1000 * part.seconds:.1f}" for name, part in timings)
