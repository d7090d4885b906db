"""Errors that are answered with a status other than 2xx, and the JSON they are answered with.

ApiError
├── Rejected        400  the request is wrong; sending it again does not help
├── UnknownKeys     400  images named by unknown keys; the client has to send them again
├── Unauthorized    401  no bearer token, or an unknown one
├── LimitReached    402  the account may generate no more images today
├── Forbidden       403  a Host or Origin that is not allowed
├── NotFound        404  no such path
├── BodyTimeout     408  the body did not arrive in time
├── BodyTooLarge    413  the body is larger than the limit
├── Unsupported     415  a Content-Type or Content-Encoding that is not read
├── Overloaded      429  the queue is full, the memory limit is reached, or an account's limit of requests
├── HeadersTooLarge 431  the headers are larger than the limit
├── Failed          500  a job failed, or this program did
└── Unavailable     503  the engine is not ready

Every error has the same form, `{"statusCode", "message"}`, except under `/v1/`, where it has OpenAI's. No message
carries a library's own text.
"""

import asyncio
import logging
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import cast, get_args

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from pipelines.errors import InvalidPrompt, PipelineError, UnknownName, UnusableFile

log = logging.getLogger("naiad")
OPENAI_ERRORS = {
    401: ("invalid_request_error", "invalid_api_key"),
    404: ("invalid_request_error", "not_found"),
    429: ("requests", "rate_limit_exceeded"),
}
"""OpenAI's type and code of an error for each status that has its own."""
INTERNAL_ERROR = "internal server error; the server's log has the details"


class ApiError(Exception):
    """An error with an HTTP status, a message for the client and optional response headers."""

    status = 500
    details: Mapping[str, object] | None = None
    """Machine-readable details for the client."""

    def __init__(self, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message, self.headers = message, dict(headers or {})


class Rejected(ApiError):
    """A field (dotted name), a header or a part is not allowed; if `field` is empty, the message is the reason."""

    status = 400

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field, self.reason = field, reason


class UnknownKeys(ApiError):
    """Images were named by keys that are not known; clients send these images again when they see this message."""

    status = 400

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__("INVALID_CACHE_KEYS")
        self.details = {"invalidKeys": list(keys)}


class Unauthorized(ApiError):
    """The bearer token is missing or unknown."""

    status = 401

    def __init__(self) -> None:
        super().__init__("Unauthorized", {"WWW-Authenticate": "Bearer"})


class LimitReached(ApiError):
    """The account may generate no more images, or not as many, today."""

    status = 402


class Forbidden(ApiError):
    """The Host or the Origin is not allowed."""

    status = 403


class NotFound(ApiError):
    """There is no such path."""

    status = 404


class BodyTimeout(ApiError):
    """The body did not arrive in time."""

    status = 408


class BodyTooLarge(ApiError):
    """The body has more bytes or more parts than the limit."""

    status = 413


class Unsupported(ApiError):
    """The Content-Type or Content-Encoding is not read."""

    status = 415


class Overloaded(ApiError):
    """The queue, the memory or the account's requests are at their limit, or too many logins have failed."""

    status = 429

    def __init__(self, message: str, seconds: int = 5) -> None:
        super().__init__(message, {"Retry-After": str(seconds)})


class HeadersTooLarge(ApiError):
    """The request line and headers are larger than the limit."""

    status = 431


class Unavailable(ApiError):
    """The engine does not take jobs: it is loading, stopping or has failed."""

    status = 503

    def __init__(self, message: str) -> None:
        super().__init__(message, {"Retry-After": "10"})


class Failed(ApiError):
    """The request was right, but this server could not do it."""


class ErrorResponse(JSONResponse):
    """An error in NAI's envelope; in OpenAI's if the request was for one of OpenAI's paths."""

    def __init__(
        self,
        status: int,
        message: str,
        headers: Mapping[str, str] | None = None,
        field: str | None = None,
        details: Mapping[str, object] | None = None,
    ) -> None:
        envelope: dict[str, object] = {"statusCode": status, "message": message}
        super().__init__(envelope if details is None else envelope | {"details": details}, status, headers)
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


def build_envelope(status: int, message: str, headers: Mapping[str, str] | None = None) -> ErrorResponse:
    """Return the JSON response that clients parse for every status other than 2xx."""
    return ErrorResponse(status, message, headers)


def to_api_error(error: BaseException) -> ApiError:
    """Return an error as one with a status; the text of an unknown one stays in the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return Unavailable("the server is stopping")
    if isinstance(error, InvalidPrompt | UnknownName | UnusableFile):
        return Rejected("", str(error))
    return Failed(str(error) if isinstance(error, PipelineError) else INTERNAL_ERROR)


def build_error_response(error: ApiError) -> JSONResponse:
    """Return the response to an error."""
    field = error.field or None if isinstance(error, Rejected) else None
    return ErrorResponse(error.status, error.message, error.headers, field, error.details)


def to_rejection(error: ValidationError, model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Rejected:
    """Return the first error of a section, whose field names start with `prefix`: field, value and description."""
    first = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in (*prefix, *first["loc"]))
    if first["type"] == "missing":
        return Rejected(field, "is required")
    allowed = _find_description(model, [str(part) for part in first["loc"]])
    value, hint = first["input"], ""
    if isinstance(value, str) and first["type"] in ("literal_error", "bool_parsing"):  # one of a few words
        # only 40 characters, because the comparison is slow for long texts
        near = get_close_matches(value[:40], re.findall(r"\w+", allowed), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
    return Rejected(field or "body", f"{shorten(value)} is not {allowed}{hint}")


def _find_description(model: type[BaseModel], path: list[str]) -> str:
    """Return the description of the field that a path of names leads to through nested models."""
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    if not path or path[0] not in fields:
        return "an object"
    field = fields[path[0]]
    for inner in (field.annotation, *get_args(field.annotation)):
        if isinstance(inner, type) and issubclass(inner, BaseModel) and len(path) > 1:
            return _find_description(inner, path[1:])
    item = _find_item_description(field.annotation) if len(path) > 1 else None
    return item or field.description or "a value this field allows"


def _find_item_description(annotation: object) -> str | None:
    """Return the description inside the type of a list, which is that of its items."""
    for inner in get_args(annotation):
        found = inner.description if isinstance(inner, FieldInfo) else _find_item_description(inner)
        if found is not None:
            return found
    return None


def shorten(value: object) -> str:
    """Return a value as JSON-like ASCII text of at most 80 characters."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = ascii(value[:80] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def install_handlers(app: FastAPI) -> None:
    """Make an application answer its errors in the envelope."""
    app.add_exception_handler(ApiError, lambda _, error: build_error_response(cast("ApiError", error)))
    app.add_exception_handler(PipelineError, _handle_pipeline_error)
    app.add_exception_handler(HTTPException, _handle_http_exception)


def _handle_pipeline_error(_: Request, error: Exception) -> JSONResponse:
    answer = to_api_error(error)
    if isinstance(answer, Failed):
        log.error("a job failed: %s", error)
    return build_error_response(answer)


def describe_failure(error: BaseException, request_id: str) -> tuple[int, str]:
    """Return the status and message of an error after a response has begun, and log it under the request's id."""
    answer = to_api_error(error)
    is_unknown = answer.message == INTERNAL_ERROR
    log.log(
        logging.ERROR if isinstance(answer, Failed) else logging.INFO,
        "%s failed in its stream: %s",
        request_id,
        type(error).__name__ if is_unknown else answer.message,
        exc_info=error if is_unknown else None,
    )
    return answer.status, answer.message


def _list_methods(request: Request) -> list[str]:
    """Return the methods that the request's path takes; starlette names those of its first route only."""
    routes = [route for route in request.app.routes if isinstance(route, APIRoute)]
    matching = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in matching for method in route.methods or ()})


def _handle_http_exception(request: Request, error: Exception) -> Response:
    error, method = cast("HTTPException", error), request.method[:20]
    if error.status_code == 404:
        return build_error_response(NotFound(f"{method} {shorten(request.scope['path'])}: no such path"))
    allowed = ", ".join(_list_methods(request))
    headers = {**(error.headers or {}), "Allow": allowed}
    if method == "OPTIONS" and allowed:
        return Response(status_code=204, headers={"Allow": f"{allowed}, OPTIONS"})
    return build_envelope(
        error.status_code, f"{method}: this path takes {allowed or 'another method'}", headers
    )
