"""Middleware that gives each request an id and a line in the log, and answers 500 if all else fails."""

import asyncio
import logging
from secrets import token_hex
from time import perf_counter

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.error_responses import build_error_response, to_api_error

log = logging.getLogger("naiad.requests")


def trace_requests(app: ASGIApp) -> ASGIApp:
    """Return `app` with `X-Request-Id` on each response, `X-Job-Id` if it has a job, and one log line a request.

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
                MutableHeaders(scope=message).update(_identify(scope))
            await send(message)

        try:
            await app(scope, receive, send_with_id)
        except (Exception, asyncio.CancelledError) as error:
            response = build_error_response(to_api_error(error, request_id))
            if not status:
                await response(scope, receive, send_with_id)
            elif isinstance(error, Exception):
                raise
        finally:
            milliseconds = 1000 * (perf_counter() - started)
            method, path = ascii(scope["method"])[1:-1][:20], ascii(scope["path"])[1:-1][:200]
            is_probe = scope["path"] in ("/live", "/ready")  # supervisors request these every few seconds
            level = logging.DEBUG if is_probe else logging.INFO
            account = scope.get("account")
            name = "" if account is None else f" {ascii(account.name)[:60]}"
            log.log(level, "%s %s %s %d %.0f ms%s", request_id, method, path, status, milliseconds, name)

    return run


def _identify(scope: Scope) -> dict[str, str]:
    """Return the headers that name a request and its job, if it has one."""
    job = {"X-Job-Id": scope["job_id"]} if "job_id" in scope else {}
    return {"X-Request-Id": scope["request_id"], **job}
