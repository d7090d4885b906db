"""The bytes a client sends, read behind limits, as one JSON object.

Two forms are read: `application/json`, and NAI's newer `multipart/form-data` whose part `request` is that JSON.
A browser cannot send either to a foreign server without asking first, which is why nothing else is read.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from email.message import Message
from typing import cast

from fastapi import Request
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from server.errors import BodyTimeout, BodyTooLarge, Rejected, Unsupported

MIB = 1 << 20
MOST_PARTS = 64
BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{1,70}")


async def read_body(request: Request, limit: int, patience: float) -> dict[str, object]:
    """The object a request carries.

    Args:
        limit: MiB that a body may have.
        patience: seconds within which all of it must have arrived.

    Raises:
        Rejected: there is no body, or it is no JSON object.
        TooSlow, TooLarge, Unsupported: it is not read to its end, or not at all.
    """
    kind = _kind(request.headers)
    try:
        async with asyncio.timeout(patience):
            body = await _whole(request, limit * MIB)
    except TimeoutError:
        raise BodyTimeout(f"the body did not arrive within {patience:g} seconds") from None
    except ClientDisconnect:
        raise Rejected("body", "ended before it was complete") from None
    if not body:
        raise Rejected("body", "is empty; send a JSON object")
    if kind == "multipart/form-data":
        body = await _request_part(request.headers, body)
    elif kind != "application/json":
        raise Unsupported(f"Content-Type: {kind!a} is not application/json or multipart/form-data")
    return parse_json_object(body)


def parse_json_object(body: bytes) -> dict[str, object]:
    """A JSON object; of a key given twice the last value counts.

    Raises:
        Rejected: it is something else.
    """
    try:
        value: object = json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise Rejected("body", "is not JSON in UTF-8, or nested too deeply") from None
    if not isinstance(value, dict):
        raise Rejected("body", "must be a JSON object")
    return cast("dict[str, object]", value)


def _kind(headers: Headers) -> str:
    """The media type, refused at once when nothing of its kind is read; empty when none is named."""
    encoding = headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise Unsupported(f"Content-Encoding: {encoding!a} is not read; send the body as it is")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()[:80]
    if kind not in ("", "application/json", "multipart/form-data"):
        raise Unsupported(f"Content-Type: {kind!a} is not application/json or multipart/form-data")
    return kind


async def _whole(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise _too_large(limit)
    chunks = bytearray()
    async for chunk in request.stream():
        chunks += chunk
        if len(chunks) > limit:
            raise _too_large(limit)
    return bytes(chunks)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit // MIB} MiB")


async def _request_part(headers: Headers, body: bytes) -> bytes:
    """The part named `request` of a multipart body."""
    boundary = _boundary(headers)
    if body.count(f"--{boundary}".encode()) > MOST_PARTS + 1:
        raise BodyTooLarge(f"the body has more than {MOST_PARTS} parts")
    # nothing but the boundary: the library would decode parts by any codec a charset names, some of them slow
    plain = Headers({"content-type": f'multipart/form-data; boundary="{boundary}"'})
    parser = MultiPartParser(plain, _once(body), max_part_size=len(body))
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError, KeyError):
        raise Rejected("body", "is not a multipart form") from None
    part = form.get("request")
    try:
        if part is None:
            raise Rejected("request", "is the part that must hold the JSON, and is missing")
        return await part.read() if isinstance(part, UploadFile) else part.encode()
    finally:
        await form.close()


def _boundary(headers: Headers) -> str:
    message = Message()
    message["content-type"] = headers.get("content-type", "")
    boundary = message.get_param("boundary")
    if not isinstance(boundary, str) or not BOUNDARY.fullmatch(boundary):
        raise Rejected("Content-Type", "names no boundary of at most 70 plain characters")
    return boundary


async def _once(body: bytes) -> AsyncGenerator[bytes]:
    yield body
    yield b""
