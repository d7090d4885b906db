"""Reading a request's body as one JSON object, within limits of size, time and memory.

Two forms are read: `application/json`, and NAI's newer `multipart/form-data`, whose part `request` is that JSON and
whose other parts are the images that it names. Nothing else is, `text/plain` in particular, which a browser sends to a
foreign server without a preflight. It sends multipart forms without one too; those depend on the Origin check in
`access`.
"""

import asyncio
import re
from dataclasses import dataclass
from email.message import Message

from fastapi import Request
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from server.api.form import split_form
from server.api.image_fields import attach_parts
from server.api.json_text import parse_json_object
from server.api.memory import MIB, Reservation
from server.api.threads import call_in_thread
from server.errors import BodyTimeout, BodyTooLarge, Rejected, Unsupported

BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{1,70}")


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Most bytes of a body, and the seconds within which all of it must arrive."""

    size: int
    timeout: float


async def read_body(
    request: Request, limits: BodyLimits, reservation: Reservation, slots: asyncio.Semaphore
) -> dict[str, object]:
    """Return the JSON object in a body; the reservation grows by its bytes as they arrive.

    It is parsed in a thread, because the event loop must go on meanwhile, and only in one of the slots, because parsing
    takes up to two more copies.

    Raises:
        Rejected: the body is empty, cut off or not a JSON object.
        Overloaded: there is no memory for it.
        BodyTimeout, BodyTooLarge, Unsupported: it was not read to its end, or not at all.
    """
    media_type = _check_media_type(request.headers)
    boundary = _parse_boundary(request.headers) if media_type == "multipart/form-data" else None
    try:
        async with asyncio.timeout(limits.timeout):
            body = await _read_bytes(request, limits.size, reservation)
    except TimeoutError:
        raise BodyTimeout(f"the body did not arrive within {limits.timeout:g} seconds") from None
    except ClientDisconnect:
        raise Rejected("body", "ended before it was complete") from None
    if not body:
        raise Rejected("body", "is empty; send a JSON object")
    if not media_type:
        raise Unsupported("Content-Type: '' is not application/json or multipart/form-data")
    async with slots:
        return await call_in_thread(_parse, body, boundary)


def _check_media_type(headers: Headers) -> str:
    """Return the media type of the body, or an empty string if the headers do not say."""
    encoding = headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise Unsupported(f"Content-Encoding: {encoding!a} is not read; send the body as it is")
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()[:80]
    if media_type not in ("", "application/json", "multipart/form-data"):
        raise Unsupported(f"Content-Type: {media_type!a} is not application/json or multipart/form-data")
    return media_type


async def _read_bytes(request: Request, limit: int, reservation: Reservation) -> bytearray:
    unit, size = ("MiB", limit // MIB) if limit >= MIB else ("KiB", limit // 1024)
    too_large = BodyTooLarge(f"the body is larger than {size} {unit}")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise too_large
    chunks = bytearray()
    try:
        async for chunk in request.stream():
            if len(chunks) + len(chunk) > limit:
                raise too_large
            reservation.resize(reservation.size + len(chunk))
            chunks += chunk
    except BaseException:  # answering it may take a while, and until then the exception refers to the bytes
        chunks.clear()
        reservation.hold(0)
        raise
    return chunks


def _parse(body: bytearray, boundary: str | None) -> dict[str, object]:
    """Return the JSON object in a complete body, which is a form if it has a boundary. Runs in a thread."""
    if boundary is None:
        return parse_json_object(body)
    parts = split_form(body, boundary)
    if "request" not in parts:
        raise Rejected("request", "the part that must hold the JSON is missing")
    sent = parse_json_object(parts.pop("request"))
    attach_parts(sent, parts)
    return sent


def _parse_boundary(headers: Headers) -> str:
    message = Message()
    message["content-type"] = headers.get("content-type", "")
    boundary = message.get_param("boundary")
    if not isinstance(boundary, str) or not BOUNDARY.fullmatch(boundary):
        raise Rejected("Content-Type", "names no boundary of at most 70 ASCII characters")
    return boundary
