"""What a client can be told, and the one envelope it is told in: `{"statusCode", "message"}`.

ApiError
├── Rejected        400  the request is wrong and will stay wrong
├── Unauthorized    401  no token, or not ours
├── Forbidden       403  a browser page or a host name that is not let in
├── NotFound        404  nothing is at this path
├── BodyTimeout     408  the body did not arrive in time
├── BodyTooLarge    413  the body is larger than bodies may be
├── Unsupported     415  a kind of body that is not read
├── Overloaded      429  the queue is full
├── HeadersTooLarge 431  more headers than are read
└── Unavailable     503  not ready, or no longer

Whatever else goes wrong answers in the same envelope, without a library's words in it.
"""

import asyncio
import logging
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import cast, get_args

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from pipelines.errors import InvalidPrompt, PipelineError, UnknownName

log = logging.getLogger("naiad")
INTERNAL_ERROR = "the server made a mistake; its log says which"
CHOICES = ("literal_error", "bool_parsing")
"""What pydantic calls a value that is none of a few words."""
LINGER = 2.0
"""Seconds for which the rest of a refused body is read, so that its sender gets to see the refusal."""


class ApiError(Exception):
    """An answer that is not 2xx."""

    status = 500

    def __init__(self, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message, self.headers = message, dict(headers or {})


class Rejected(ApiError):
    """`field` given as `value` is not what is allowed."""

    status = 400

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)


class Unauthorized(ApiError):
    """The bearer token is missing or wrong."""

    status = 401

    def __init__(self) -> None:
        super().__init__("Unauthorized", {"WWW-Authenticate": "Bearer"})


class Forbidden(ApiError):
    """A browser page or a host name that is not let in."""

    status = 403


class NotFound(ApiError):
    """Nothing is at this path."""

    status = 404

    def __init__(self, method: str, path: str) -> None:
        super().__init__(f"{method[:20]} {shorten(path)}: there is nothing here")


class BodyTimeout(ApiError):
    """The body did not arrive in time."""

    status = 408


class BodyTooLarge(ApiError):
    """The body is larger, or in more parts, than bodies may be."""

    status = 413


class Unsupported(ApiError):
    """A kind of body that is not read."""

    status = 415


class Overloaded(ApiError):
    """As many requests wait as may wait."""

    status = 429

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} requests are waiting already; try again shortly", {"Retry-After": "5"})


class HeadersTooLarge(ApiError):
    """More in front of the body than is read."""

    status = 431

    def __init__(self) -> None:
        super().__init__("the headers are too large")


class Unavailable(ApiError):
    """The engine cannot take work."""

    status = 503

    def __init__(self, message: str) -> None:
        super().__init__(message, {"Retry-After": "10"})


def envelope(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer NAI's clients parse for every status that is not 2xx."""
    return JSONResponse({"statusCode": status, "message": message}, status, headers)


def error_response(error: ApiError) -> JSONResponse:
    """The answer to a refusal; one given before the body was read lets the sender finish, then hangs up."""
    if isinstance(error, BodyTooLarge | BodyTimeout):
        body = {"statusCode": error.status, "message": error.message}
        return LingeringResponse(body, error.status, error.headers | {"Connection": "close"})
    return envelope(error.status, error.message, error.headers)


class LingeringResponse(JSONResponse):
    """An answer after which the rest of the request is read and dropped for a moment.

    Closing a connection at once while its peer still sends makes the peer lose the answer.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, drain, and end."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        try:
            async with asyncio.timeout(LINGER):
                while (message := await receive()).get("more_body"):
                    del message
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b""})


def to_rejection(error: ValidationError, model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Rejected:
    """Return the first thing wrong with a body: its dotted field, the value given, and the field's description.

    Args:
        prefix: names of the fields around a section that was validated alone.
    """
    first = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in (*prefix, *first["loc"]))
    if first["type"] == "missing":
        return Rejected(field, "is required")
    allowed = _allowed(model, [str(part) for part in first["loc"]])
    given = first["input"]
    hint = _hint(given, allowed) if isinstance(given, str) and first["type"] in CHOICES else ""
    return Rejected(field or "body", f"{shorten(given)} is not {allowed}{hint}")


def _hint(given: str, allowed: str) -> str:
    """The word of a description that was meant; only the beginning of a text is compared, as that takes its time."""
    near = get_close_matches(given[:40], re.findall(r"\w+", allowed), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _allowed(model: type[BaseModel], path: list[str]) -> str:
    """A field's description, found by following a path of names through models."""
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    if not path or path[0] not in fields:
        return "an object"
    field = fields[path[0]]
    for inner in (field.annotation, *get_args(field.annotation)):
        if isinstance(inner, type) and issubclass(inner, BaseModel) and len(path) > 1:
            return _allowed(inner, path[1:])
    return field.description or "what this field takes"


def shorten(value: object) -> str:
    """A value as JSON-like text that fits into a message."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = ascii(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def install_handlers(app: FastAPI) -> None:
    """Answer every failure of an app in the envelope."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(PipelineError, _pipeline_error)
    app.add_exception_handler(HTTPException, _http)


def _api_error(_: Request, error: Exception) -> JSONResponse:
    return error_response(cast("ApiError", error))


def _pipeline_error(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, InvalidPrompt | UnknownName):
        return envelope(400, str(error))
    log.error("a job failed: %s", error)
    return envelope(500, str(error))


def _http(request: Request, error: Exception) -> JSONResponse:
    error = cast("HTTPException", error)
    if error.status_code == 404:
        return error_response(NotFound(request.method, request.scope["path"]))
    allowed = (error.headers or {}).get("Allow", "another method")
    return envelope(error.status_code, f"{request.method[:20]}: this path takes {allowed}", error.headers)
