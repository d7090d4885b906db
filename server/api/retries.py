"""Recognizing a request that a client sends again, because it lost the connection for example.

A retry has the token, the path, the X-Correlation-Id and the body of the first attempt. The id alone would not do:
clients make short random ones, and some send the same one for all their requests.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import cast

from fastapi import Request

from server.api.threads import call_in_thread

CORRELATION_LIMIT = 100
"""Characters of an X-Correlation-Id that count; clients send 6, or a UUID."""
PIECE = 1 << 20
"""Characters of a text that are encoded at once."""


@dataclass(frozen=True, slots=True)
class RequestKey:
    """What a request and its retries have in common.

    Attributes:
        sender: of the Authorization header, see `ImageCache.identify`.
        digest: SHA-256 of the body.
    """

    path: str
    sender: bytes
    client: str
    correlation_id: str
    digest: bytes


def read_correlation_id(request: Request) -> str:
    """Return the client's own name for a request, or an empty text."""
    return request.headers.get("x-correlation-id", "")[:CORRELATION_LIMIT]


async def identify_request(
    request: Request, body: Mapping[str, object], sender: bytes, client: str
) -> RequestKey | None:
    """Return the key of a request; None if it has no X-Correlation-Id, and thus no retries."""
    correlation_id = read_correlation_id(request)
    if not correlation_id:
        return None
    digest = await call_in_thread(digest_body, body)
    return RequestKey(request.url.path, sender, client, correlation_id, digest)


def digest_body(body: object) -> bytes:
    """Return the SHA-256 of a parsed body, which does not depend on the order of its keys, without copying it."""
    digest, pending = sha256(), [body]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            entries = cast("dict[str, object]", value)
            digest.update(b"{%d" % len(entries))
            pending += [part for key in sorted(entries) for part in (entries[key], key)]
        elif isinstance(value, list):
            entries = cast("list[object]", value)
            digest.update(b"[%d" % len(entries))
            pending += entries
        else:
            for piece in _iter_pieces(value):
                digest.update(piece)
    return digest.digest()


def _iter_pieces(value: object) -> Iterator[bytes]:
    """Yield the type, the length and the content of a value without parts."""
    content = value if isinstance(value, str | bytes) else repr(value)
    yield b"%s%d:" % (type(value).__name__.encode(), len(content))
    for start in range(0, len(content), PIECE):
        piece = content[start : start + PIECE]
        yield piece.encode("utf-8", "surrogatepass") if isinstance(piece, str) else piece
