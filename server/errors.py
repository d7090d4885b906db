"""What a client can be told, and the one envelope it is told in: `{"statusCode", "message"}`.

ApiError
├── Rejected        400  the request is wrong and will stay wrong
├── Unauthorized    401  no token, or not ours
├── Overloaded      429  the queue is full
└── Unavailable     503  not ready, or no longer

Whatever else goes wrong answers in the same envelope, without a library's words in it.
"""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pipelines.errors import InvalidPrompt, PipelineError, UnknownName

log = logging.getLogger("naiad")


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


class Overloaded(ApiError):
    """As many requests wait as may wait."""

    status = 429

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} requests are waiting already; try again shortly", {"Retry-After": "5"})


class Unavailable(ApiError):
    """The engine cannot take work."""

    status = 503

    def __init__(self, message: str) -> None:
        super().__init__(message, {"Retry-After": "10"})


def envelope(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer NAI's clients parse for every status that is not 2xx."""
    return JSONResponse({"statusCode": status, "message": message}, status, headers)


def install(app: FastAPI) -> None:
    """Answer every failure of an app in the envelope."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(PipelineError, _pipeline_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def _api_error(_: Request, error: Exception) -> JSONResponse:
    error = cast("ApiError", error)
    return envelope(error.status, error.message, error.headers)


def _pipeline_error(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, InvalidPrompt | UnknownName):
        return envelope(400, str(error))
    log.error("a job failed: %s", error)
    return envelope(500, str(error))


def _invalid(_: Request, error: Exception) -> JSONResponse:
    """The first thing wrong with a body, named by its dotted field."""
    first = cast("RequestValidationError", error).errors()[0]
    if first["type"] == "json_invalid":
        return envelope(400, "the body is not JSON")
    field = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    given = "" if isinstance(first.get("input"), dict | list) else f", not {_shortened(first.get('input'))}"
    return envelope(400, f"{field}: {_said(first)}{given}")


def _said(problem: Mapping[str, object]) -> str:
    """A validator's own words where they are ours, otherwise pydantic's rule in lower case."""
    words = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    return "is required" if problem["type"] == "missing" else words


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _http(_: Request, error: Exception) -> JSONResponse:
    error = cast("HTTPException", error)
    return envelope(error.status_code, HTTPStatus(error.status_code).phrase, error.headers)


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return envelope(500, "the server made a mistake; its log says which")
