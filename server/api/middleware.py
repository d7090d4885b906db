"""Middleware that gives each request an id and a line in the log, and answers 500 if all else fails."""

import logging
from secrets import token_hex
from time import perf_counter

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import INTERNAL_ERROR, build_envelope

log = logging.getLogger("naiad.requests")


def trace_requests(app: ASGIApp) -> ASGIApp:
    """Return `app` with `X-Request-Id` on each response and one log line for each request.

    The line has the path, but neither the query nor a header, because those may hold secrets. An exception before the
    response has started is answered with 500; a later one is raised again.
    """

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        request_id, started, status = token_hex(8), perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await app(scope, receive, send_with_id)
        except Exception:
            log.exception("%s failed", request_id)
            if status:
                raise
            await build_envelope(500, INTERNAL_ERROR)(scope, receive, send_with_id)
        finally:
            milliseconds = 1000 * (perf_counter() - started)
            method, path = ascii(scope["method"])[1:-1][:20], ascii(scope["path"])[1:-1][:200]
            is_probe = scope["path"] in ("/live", "/ready")  # supervisors request these every few seconds
            level = logging.DEBUG if is_probe else logging.INFO
            log.log(level, "%s %s %s %d %.0f ms", request_id, method, path, status, milliseconds)

    return run
