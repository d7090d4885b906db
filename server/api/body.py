"""Reading a request's body as one JSON object, within limits of size and time.

Two forms are read: `application/json`, and NAI's newer `multipart/form-data` whose part `request` is that JSON.
Nothing else is, `text/plain` in particular, which a browser sends to a foreign server without a preflight. It sends
multipart forms without one too; those depend on the Origin check in `access`.
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
PART_LIMIT = 64
BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{1,70}")


async def read_body(request: Request, limit: int, timeout: float) -> dict[str, object]:
    """Return the JSON object in a body of at most `limit` MiB, all of which must arrive within `timeout` seconds.

    Raises:
        Rejected: the body is empty, cut off or not a JSON object.
        BodyTimeout, BodyTooLarge, Unsupported: it was not read to its end, or not at all.
    """
    media_type = _check_media_type(request.headers)
    try:
        async with asyncio.timeout(timeout):
            body = await _read_bytes(request, limit * MIB)
    except TimeoutError:
        raise BodyTimeout(f"the body did not arrive within {timeout:g} seconds") from None
    except ClientDisconnect:
        raise Rejected("body", "ended before it was complete") from None
    if not body:
        raise Rejected("body", "is empty; send a JSON object")
    if media_type == "multipart/form-data":
        body = await _extract_request_part(request.headers, body)
    elif media_type != "application/json":
        raise Unsupported(f"Content-Type: {media_type!a} is not application/json or multipart/form-data")
    return parse_json_object(body)


def parse_json_object(body: bytes) -> dict[str, object]:
    """Return a JSON object, or raise `Rejected`; if a key is repeated, its last value counts."""
    try:
        value: object = json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise Rejected("body", "is not JSON in UTF-8, or nested too deeply") from None
    if not isinstance(value, dict):
        raise Rejected("body", "must be a JSON object")
    return cast("dict[str, object]", value)


def _check_media_type(headers: Headers) -> str:
    """Return the media type of the body, or an empty string if the headers do not say."""
    encoding = headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise Unsupported(f"Content-Encoding: {encoding!a} is not read; send the body as it is")
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()[:80]
    if media_type not in ("", "application/json", "multipart/form-data"):
        raise Unsupported(f"Content-Type: {media_type!a} is not application/json or multipart/form-data")
    return media_type


async def _read_bytes(request: Request, limit: int) -> bytes:
    too_large = BodyTooLarge(f"the body is larger than {limit // MIB} MiB")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise too_large
    chunks = bytearray()
    async for chunk in request.stream():
        chunks += chunk
        if len(chunks) > limit:
            raise too_large
    return bytes(chunks)


async def _extract_request_part(headers: Headers, body: bytes) -> bytes:
    """Return the part named `request` of a multipart body."""
    boundary = _parse_boundary(headers)
    if body.count(f"--{boundary}".encode()) > PART_LIMIT + 1:
        raise BodyTooLarge(f"the body has more than {PART_LIMIT} parts")
    # only the boundary is passed on: the parser would decode parts by any codec that `charset` names, some of them slow
    plain = Headers({"content-type": f'multipart/form-data; boundary="{boundary}"'})
    parser = MultiPartParser(plain, _stream_once(body), max_part_size=len(body))
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError, KeyError):
        raise Rejected("body", "is not a multipart form") from None
    part = form.get("request")
    try:
        if part is None:
            raise Rejected("request", "the part that must hold the JSON is missing")
        return await part.read() if isinstance(part, UploadFile) else part.encode()
    finally:
        await form.close()


def _parse_boundary(headers: Headers) -> str:
    message = Message()
    message["content-type"] = headers.get("content-type", "")
    boundary = message.get_param("boundary")
    if not isinstance(boundary, str) or not BOUNDARY.fullmatch(boundary):
        raise Rejected("Content-Type", "names no boundary of at most 70 ASCII characters")
    return boundary


async def _stream_once(body: bytes) -> AsyncGenerator[bytes]:
    yield body
    yield b""
