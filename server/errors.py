"""Errors that are answered with a status other than 2xx. What they are answered with is in api/error_responses.py.

ApiError
├── Rejected         400  the request is wrong; sending it again does not help
├── UnknownKeys      400  images named by unknown keys; the client has to send them again
├── Unauthorized     401  no bearer token, or an unknown one
├── LimitReached     402  the account may generate no more images today
├── Forbidden        403  a Host or Origin that is not allowed
├── NotFound         404  no such path, or nothing there
├── MethodNotAllowed 405  the path takes other methods
├── BodyTimeout      408  the body did not arrive in time
├── Conflict         409  the job was cancelled, or has ended already
├── BodyTooLarge     413  the body is larger than the limit
├── Unsupported      415  a Content-Type or Content-Encoding that is not read
├── Overloaded       429  the queue is full, the memory limit is reached, or an account's limit of requests
├── HeadersTooLarge  431  the headers are larger than the limit
├── Disconnected     499  the client has hung up; only the log and the metrics show it
├── Failed           500  a job failed, or this program did
└── Unavailable      503  the engine is not ready, or has too little memory

No message carries a library's own text.
"""

from collections.abc import Mapping, Sequence
from math import ceil

UNKNOWN_RETRY, LONGEST_RETRY = 5, 600
"""Seconds after which to try again if nothing is known, and at most."""
UNAVAILABLE_RETRY = 10
"""The same for what takes longer than waiting for room, such as loading."""


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
    """There is no such path, or nothing to return there."""

    status = 404


class MethodNotAllowed(ApiError):
    """The path takes other methods."""

    status = 405


class BodyTimeout(ApiError):
    """The body did not arrive in time."""

    status = 408


class Conflict(ApiError):
    """The job was cancelled on request, or cannot be cancelled because it has ended."""

    status = 409


class BodyTooLarge(ApiError):
    """The body has more bytes or more parts than the limit."""

    status = 413


class Unsupported(ApiError):
    """The Content-Type or Content-Encoding is not read."""

    status = 415


class Overloaded(ApiError):
    """The queue, the memory or the account's requests are at their limit, or too many logins have failed.

    Args:
        reason: the message, which goes on with when to try again.
        seconds: when that is expected to be; None if it is not known.
    """

    status = 429

    def __init__(self, reason: str, seconds: float | None = None) -> None:
        whole = _round_retry(seconds, UNKNOWN_RETRY)
        when = "shortly" if seconds is None else f"in {whole} second{'s' if whole > 1 else ''}"
        super().__init__(f"{reason}; try again {when}", {"Retry-After": str(whole)})


class HeadersTooLarge(ApiError):
    """The request line and headers are larger than the limit."""

    status = 431


class Disconnected(ApiError):
    """The client has hung up; nothing receives this response."""

    status = 499

    def __init__(self) -> None:
        super().__init__("the client has disconnected")


class Unavailable(ApiError):
    """The engine does not take jobs (it is loading, stopping or has failed), has too little memory for one, or too
    little time.

    Args:
        seconds: when to try again; None if it is not known.
    """

    status = 503

    def __init__(self, message: str, seconds: float | None = None) -> None:
        super().__init__(message, {"Retry-After": str(_round_retry(seconds, UNAVAILABLE_RETRY))})


class Failed(ApiError):
    """The request was right, but this server could not do it."""


def _round_retry(seconds: float | None, unknown: int) -> int:
    return unknown if seconds is None else ceil(min(max(seconds, 1), LONGEST_RETRY))


def shorten(value: object) -> str:
    """Return a value as JSON-like ASCII text of at most 80 characters."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = ascii(value[:80] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."
