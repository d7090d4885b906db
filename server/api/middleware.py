"""Middleware that gives each request an id and a line in the log, and answers 500 if all else fails."""

import asyncio
import logging
from collections.abc import Callable
from secrets import token_hex
from time import perf_counter

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from server.api.error_responses import build_error_response, to_api_error
from server.api.timings import format_timings, get_timings

Observe = Callable[[Scope, int, float], None]
"""Called with a request that has ended, the status of its response, and when it began by `perf_counter`."""
PROBES = ("/live", "/ready", "/metrics")
"""Paths that supervisors request every few seconds."""
log = logging.getLogger("naiad.requests")


def trace_requests(app: ASGIApp, observe: Observe = lambda scope, status, started: None) -> ASGIApp:
    """Return `app` with `X-Request-Id` on each response, and one log line for each request.

    A response also has `X-Job-Id` if the request has a job, and `Server-Timing` if something was measured.
    The line has the path and the name of the account, but neither the query nor a header, because those may hold
    secrets. An exception before the response has started is answered with 500; a later one is raised again. A request
    that is cancelled, because the server stops, is answered with 503.
    """

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        request_id, started, status = token_hex(8), perf_counter(), 0
        scope["request_id"], scope["arrived"] = request_id, asyncio.get_running_loop().time()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(_build_headers(scope))
            await send(message)

        with bound_contextvars(request_id=request_id):  # in the lines that handling the request logs
            try:
                await app(scope, receive, send_with_id)
            except (Exception, asyncio.CancelledError) as error:
                response = build_error_response(to_api_error(error, request_id))
                if not status:
                    await response(scope, receive, send_with_id)
                elif isinstance(error, Exception):
                    raise
            finally:
                _log_response(scope, status, started)
                observe(scope, status, started)

    return run


def _log_response(scope: Scope, status: int, started: float) -> None:
    """Write the line of a request, as text and as attributes of the record."""
    request_id, account, seconds = scope["request_id"], scope.get("account"), perf_counter() - started
    method, path = ascii(scope["method"])[1:-1][:20], ascii(scope["path"])[1:-1][:200]
    fields = {"request_id": request_id, "method": method, "path": path, "status": status}
    fields["seconds"] = round(seconds, 4)
    fields["timings"] = {name: round(part.seconds, 4) for name, part in get_timings(scope).items()}
    if account is not None:
        fields["account"] = ascii(account.name)[1:-1][:60]
    name = "" if account is None else f" {ascii(account.name)[:60]}"
    level = logging.DEBUG if scope["path"] in PROBES else logging.INFO
    log.log(
        level, "%s %s %s %d %.0f ms%s", request_id, method, path, status, 1000 * seconds, name, extra=fields
    )


def _build_headers(scope: Scope) -> dict[str, str]:
    """Return the headers that name a request and its job, if it has one, and say what took how long."""
    job = {"X-Job-Id": scope["job_id"]} if "job_id" in scope else {}
    timing = {"Server-Timing": format_timings(scope)} if get_timings(scope) else {}
    return {"X-Request-Id": scope["request_id"], **job, **timing}
