"""The metrics of one server, in Prometheus' form. docs/operations.md lists them."""

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from starlette.types import Scope

from server.engine.engine import Engine, State
from server.engine.events import (
    Event,
    JobBegan,
    JobEnded,
    MemoryRanOut,
    Outcome,
    PassTaken,
    SharedPassFailed,
    WeightsChanged,
)
from server.engine.ticket import CancelReason

JOB_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
"""Seconds: an image takes half a second on a large GPU, and minutes on a CPU."""
PASS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Seconds of one evaluation, of decoding an image, or of writing its file."""
ROW_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


class Metrics:
    """Counts what happens in one server.

    Attributes:
        registry: of this server alone.
        archive_failures: images that could not be archived.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # resident memory, CPU time and open files, where there is /proc
        ProcessCollector(registry=self.registry)
        gauge, count = partial(Gauge, registry=self.registry), partial(Counter, registry=self.registry)
        self._state = gauge("naiad_engine_state", "1 for the state that the engine is in", ["state"])
        self._memory = gauge("naiad_device_memory_bytes", "Memory of the GPU", ["kind"])
        self._requests = count("naiad_http_requests", "Answered HTTP requests", ["path", "status"])
        self.archive_failures = count("naiad_archive_failures", "Images that could not be archived")
        self._define_jobs()
        self._define_passes()

    def _define_jobs(self) -> None:
        gauge, count = partial(Gauge, registry=self.registry), partial(Counter, registry=self.registry)
        measure = partial(Histogram, labelnames=["kind"], buckets=JOB_BUCKETS, registry=self.registry)
        self._waiting = gauge("naiad_jobs_waiting", "Jobs that have not begun")
        self._running = gauge("naiad_jobs_running", "Jobs that have begun and are not finished")
        self._waited = measure("naiad_job_wait_seconds", "Time that jobs waited before they began")
        self._worked = measure("naiad_job_device_seconds", "The device's work on jobs that succeeded")
        self._jobs = count("naiad_jobs", "Jobs that have ended", ["kind", "outcome"])
        self._cancelled = count("naiad_cancellations", "Jobs that were cancelled", ["reason"])
        self._images = count("naiad_images", "Finished images", ["kind"])
        self._pixels = count("naiad_image_pixels", "Pixels of finished images", ["kind"])
        for reason in get_args(CancelReason):  # so that it is 0 before it happens, as alerts need it
            self._cancelled.labels(reason)
        for outcome in get_args(Outcome):
            self._jobs.labels("generate", outcome)

    def _define_passes(self) -> None:
        count, measure = partial(Counter, registry=self.registry), partial(Histogram, registry=self.registry)
        long, short = partial(measure, buckets=JOB_BUCKETS), partial(measure, buckets=PASS_BUCKETS)
        self._stages = short("naiad_pass_seconds", "Time of a step, or of several taken together", ["stage"])
        self._rows = measure("naiad_pass_rows", "Rows of a pass of the UNet", buckets=ROW_BUCKETS)
        self._evaluations = count("naiad_evaluations", "Evaluations of the UNet, each for one image")
        self._retries = count("naiad_shared_pass_retries", "Shared passes taken again image by image")
        self._memory_retries = count("naiad_memory_retries", "Times that memory ran out and was freed")
        self._switches = long("naiad_weights_switch_seconds", "Time to change a model or LoRAs", ["source"])
        self._files = short("naiad_image_file_seconds", "Time to write an image file", ["format"])

    def observe(self, event: Event) -> None:
        """Count an event of the engine."""
        match event:
            case JobBegan():
                self._waited.labels(event.kind).observe(event.waited)
            case JobEnded():
                self._observe_end(event)
            case PassTaken():
                self._observe_pass(event)
            case SharedPassFailed():
                self._retries.inc()
            case MemoryRanOut():
                self._memory_retries.inc()
            case WeightsChanged():
                self._switches.labels(event.source).observe(event.seconds)

    def _observe_end(self, event: JobEnded) -> None:
        self._jobs.labels(event.kind, event.outcome).inc()
        if event.reason is not None:
            self._cancelled.labels(event.reason).inc()
        if event.outcome == "done":
            self._worked.labels(event.kind).observe(event.seconds)
            self._images.labels(event.kind).inc(event.images)
            self._pixels.labels(event.kind).inc(event.pixels)

    def _observe_pass(self, event: PassTaken) -> None:
        self._stages.labels(event.stage).observe(event.seconds)
        if event.stage == "draw":
            self._rows.observe(event.rows)
            self._evaluations.inc(event.images)

    def count_response(self, scope: Scope, status: int) -> None:
        """Count the response to a request by its route, because clients can make up any number of paths."""
        self._requests.labels(getattr(scope.get("route"), "path", ""), str(status)).inc()

    def count_refusal(self, status: int) -> None:
        """Count a request that was refused before its path was known."""
        self._requests.labels("", str(status)).inc()

    @contextmanager
    def measure_file(self, image_format: str) -> Generator[None]:
        """Count the time inside the context as writing one image file."""
        started = perf_counter()
        yield
        self._files.labels(image_format).observe(perf_counter() - started)

    def render(self, engine: Engine, accept: str = "") -> tuple[bytes, str]:
        """Return all metrics in the form that an `Accept` header asks for, and its media type."""
        for state in State:
            self._state.labels(state.value).set(engine.state is state)
        self._waiting.set(engine.waiting)
        self._running.set(engine.running)
        for kind, size in engine.device_memory.items():
            self._memory.labels(kind).set(size)
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type
