"""The seconds that the parts of a request took, for its header `Server-Timing` and its line in the log."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from time import perf_counter

from starlette.requests import Request
from starlette.types import Scope

from pipelines.steps import Stage
from server.engine.ticket import Result

STAGES: tuple[Stage, ...] = ("encode", "draw", "upscale", "decode")
"""In the order of an image's way."""


def get_timings(scope: Scope) -> dict[str, float]:
    """Return what has been measured of a request, by its name."""
    return scope.setdefault("timings", {})


def add_result(request: Request, result: Result) -> None:
    """Add what a job of the engine took: the time in the queue, and the device's work on it."""
    stages = {stage: result.stages[stage] for stage in STAGES if stage in result.stages}
    get_timings(request.scope).update({"queue": result.queue_seconds, **stages})


@contextmanager
def measure_part(request: Request, name: str) -> Generator[None]:
    """Add the time inside the context."""
    started = perf_counter()
    yield
    get_timings(request.scope)[name] = perf_counter() - started


def format_timings(timings: Mapping[str, float]) -> str:
    """Return the value of `Server-Timing`, in milliseconds."""
    return ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in timings.items())
