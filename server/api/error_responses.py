"""From any exception to the response that a client gets.

`to_api_error` decides the status and the message, here and in streams, whose response has begun. Every error has the
same form, `{"statusCode", "message"}`, except under `/v1/`, where it has OpenAI's.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import cast

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from pipelines.errors import InvalidPrompt, OutOfMemory, PipelineError, UnknownName, UnusableFile
from server.errors import ApiError, Failed, MethodNotAllowed, NotFound, Rejected, Unavailable, shorten

log = logging.getLogger("naiad")
OPENAI_ERRORS = {
    401: ("invalid_request_error", "invalid_api_key"),
    404: ("invalid_request_error", "not_found"),
    429: ("requests", "rate_limit_exceeded"),
}
"""OpenAI's type and code of an error for each status that has its own."""
MEMORY_ADVICE = "request a smaller image, or lower engine.device_memory in the server's settings"
INTERNAL_ERROR = "internal server error; the server's log has the details"


class ErrorResponse(JSONResponse):
    """An error in NAI's form; in OpenAI's if the request was for one of OpenAI's paths."""

    def __init__(
        self,
        status: int,
        message: str,
        headers: Mapping[str, str] | None = None,
        field: str | None = None,
        details: Mapping[str, object] | None = None,
    ) -> None:
        content: dict[str, object] = {"statusCode": status, "message": message}
        super().__init__(content if details is None else content | {"details": details}, status, headers)
        kind, code = OPENAI_ERRORS.get(
            status, ("invalid_request_error" if status < 500 else "server_error", None)
        )
        error = {"message": message, "type": kind, "param": field, "code": code}
        self._for_openai = JSONResponse({"error": error}, status, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].removeprefix(scope.get("root_path", "")).startswith("/v1/"):
            await self._for_openai(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def build_error_response(error: ApiError) -> ErrorResponse:
    """Return the response to an error."""
    field = error.field or None if isinstance(error, Rejected) else None
    return ErrorResponse(error.status, error.message, error.headers, field, error.details)


def to_api_error(error: BaseException, request_id: str) -> ApiError:
    """Return an exception as an error with a status; what is this server's fault is logged under the request's id.

    The text of an unknown exception stays in the log.
    """
    if isinstance(error, ApiError):
        answer = error
    elif isinstance(error, asyncio.CancelledError):
        answer = Unavailable("the server is stopping")
    elif isinstance(error, InvalidPrompt | UnknownName | UnusableFile):
        answer = Rejected("", str(error))
    elif isinstance(error, OutOfMemory):
        log.error("%s failed: %s", request_id, error)
        answer = Unavailable(f"{error}; {MEMORY_ADVICE}")
    elif isinstance(error, PipelineError):
        answer = Failed(str(error))
    else:
        log.error("%s failed", request_id, exc_info=error)
        return Failed(INTERNAL_ERROR)
    if isinstance(answer, Failed):
        log.error("%s failed: %s", request_id, answer.message)
    return answer


def install_error_handlers(app: FastAPI) -> None:
    """Make an application answer the errors of its routes; api/middleware.py answers all others."""
    app.add_exception_handler(ApiError, _handle_error)
    app.add_exception_handler(PipelineError, _handle_error)
    app.add_exception_handler(HTTPException, _handle_routing_error)


def _handle_error(request: Request, error: Exception) -> Response:
    return build_error_response(to_api_error(error, request.scope["request_id"]))


def _handle_routing_error(request: Request, error: Exception) -> Response:
    """Answer a path that does not exist, or a method that it does not take; `OPTIONS` is answered for every path."""
    method = request.method[:20]
    if cast("HTTPException", error).status_code == 404:
        return build_error_response(NotFound(f"{method} {shorten(request.scope['path'])}: no such path"))
    allowed = ", ".join(_list_methods(request))
    if method == "OPTIONS" and allowed:
        return Response(status_code=204, headers={"Allow": f"{allowed}, OPTIONS"})
    message = f"{method}: this path takes {allowed or 'another method'}"
    return build_error_response(MethodNotAllowed(message, {"Allow": allowed}))


def _list_methods(request: Request) -> list[str]:
    """Return the methods that the request's path takes; starlette names those of its first route only."""
    routes = [route for route in request.app.routes if isinstance(route, APIRoute)]
    matching = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in matching for method in route.methods or ()})
