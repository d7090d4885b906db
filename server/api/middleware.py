"""An id for every request, in its answer and in the log, and an answer even when everything else fails."""

import logging
from secrets import token_hex
from time import perf_counter

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import INTERNAL_ERROR, envelope

log = logging.getLogger("naiad.requests")
PROBED = ("/live", "/ready")
"""What supervisors ask every few seconds."""


def trace_requests(app: ASGIApp) -> ASGIApp:
    """The application with `X-Request-Id` on each answer, and a line in the log for each request.

    The line names the path and never the query or a header, where strangers' secrets are.
    """

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        identity, started, status = token_hex(8), perf_counter(), 0

        async def stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = identity
            await send(message)

        try:
            await app(scope, receive, stamped)
        except Exception:
            log.exception("%s failed", identity)
            if status:
                raise
            await envelope(500, INTERNAL_ERROR)(scope, receive, stamped)
        finally:
            taken = 1000 * (perf_counter() - started)
            method, path = ascii(scope["method"])[1:-1][:20], ascii(scope["path"])[1:-1][:200]
            level = logging.DEBUG if scope["path"] in PROBED else logging.INFO
            log.log(level, "%s %s %s %d %.0f ms", identity, method, path, status, taken)

    return run
