"""Traces of requests for OpenTelemetry, if its packages are installed and there is a collector for them.

The spans of a request are made when it has ended, of what was measured by then. A thread of OpenTelemetry's sends them.
"""

import logging
from collections.abc import Mapping
from threading import Thread
from time import perf_counter, time
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import Scope

from server.api.timings import get_timings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger("naiad")
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
STOP_TIMEOUT = 2.0
"""Seconds that the end of the server waits for the last spans to be sent."""


class Tracing:
    """Gives each request a span, with spans of its parts below it."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider, self._tracer = provider, provider.get_tracer("naiad")
        self._propagator = TraceContextTextMapPropagator()

    def record(self, scope: Scope, status: int, started: float) -> None:
        """Record a request that has ended; below the span that its `traceparent` names, if it has one."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        offset, route = time() - perf_counter(), getattr(scope.get("route"), "path", "")
        attributes = {
            "http.request.method": scope["method"][:20],
            "http.route": route,
            "http.response.status_code": status,
            "naiad.request_id": scope["request_id"],
        }
        parent = self._propagator.extract(dict(Headers(scope=scope)))
        name, began = f"{scope['method'][:20]} {route}".strip(), _to_nanoseconds(started + offset)
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, attributes, start_time=began)
        below = set_span_in_context(span)
        for part, (begin, seconds) in get_timings(scope).items():
            child = self._tracer.start_span(part, below, start_time=_to_nanoseconds(begin + offset))
            child.end(_to_nanoseconds(begin + seconds + offset))
        span.end(_to_nanoseconds(time()))

    def close(self) -> None:
        """Send what has not been sent, unless that takes too long."""
        thread = Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(STOP_TIMEOUT)


def open_tracing(environment: Mapping[str, str]) -> Tracing | None:
    """Return tracing to the collector that OpenTelemetry's variables name; None without one, or without packages."""
    name = next((name for name in ENDPOINTS if environment.get(name)), None)
    if name is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning(
            "no traces are sent, although %s is set; install the extra: pip install 'naiad[tracing]'", name
        )
        return None
    resource = Resource.create({"service.name": environment.get("OTEL_SERVICE_NAME", "naiad")})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


def _to_nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
