"""Middleware that brings each exchange to its end: the request's body is read, and the response is taken.

A server that closes a connection while the client still sends makes the client lose the response. So what is left of a
refused body is read and dropped, within limits. A response is handed over in pieces as the client takes them, and only
then the memory of the request is given back.
"""

import asyncio
from collections.abc import Iterator
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.memory import Memory
from server.api.threads import call_in_thread
from server.config.settings import OnDisconnect
from server.heap import trim_heap

DRAIN_TIMEOUT = 20.0
"""Seconds for which the rest of a refused body is read: enough for 16 MB at 10 Mbit/s."""
DRAIN_LIMIT = 64 << 20
"""Bytes of a refused body that are read."""
LARGE = 16 << 20
"""Bytes held by a request after which the heap is trimmed; eight upscaled images would leave 240 MB behind."""
PIECE = 256 * 1024
"""Bytes of a response that are handed over at once."""


def complete_exchanges(app: ASGIApp, memory: Memory, on_disconnect: OnDisconnect = "cancel") -> ASGIApp:
    """Return `app` with a reservation of memory in each request's scope, and with complete exchanges.

    Args:
        on_disconnect: with "finish", requests that have arrived are carried out to the end, as the application never
            learns that the client has gone.
    """

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        exchange = Exchange(Headers(scope=scope), receive, send, on_disconnect)
        with memory.reserve() as reservation:
            scope["reservation"] = reservation
            await app(scope, exchange.receive, exchange.send)
        if reservation.largest >= LARGE:
            await call_in_thread(trim_heap)

    return run


class Exchange:
    """One request and its response."""

    def __init__(self, headers: Headers, receive: Receive, send: Send, on_disconnect: OnDisconnect) -> None:
        self._receive, self._send, self._on_disconnect = receive, send, on_disconnect
        self._is_read = "content-length" not in headers and "transfer-encoding" not in headers

    async def receive(self) -> Message:
        """Return the application's next message."""
        if self._is_read and self._on_disconnect == "finish":
            await asyncio.Event().wait()  # only a disconnect could follow
        message = await self._receive()
        self._is_read = self._is_read or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a message of the application; the last one only after the body has been read."""
        if message["type"] != "http.response.body":
            if not self._is_read:
                MutableHeaders(scope=message)["Connection"] = "close"
            await self._send(message)
            return
        is_last = not message.get("more_body", False)
        *pieces, last = _split(message.get("body", b""))
        for piece in pieces:
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        if is_last and not self._is_read:
            await self._send({"type": "http.response.body", "body": last, "more_body": True})
            await self._drain()
            last = b""
        await self._send({"type": "http.response.body", "body": last, "more_body": not is_last})

    async def _drain(self) -> None:
        """Read and drop the rest of the body."""
        size = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_TIMEOUT):
                while not self._is_read and size < DRAIN_LIMIT:
                    size += len((await self.receive()).get("body", b""))


def _split(body: bytes) -> Iterator[bytes]:
    """Yield pieces of a response's body, at least one."""
    yield body[:PIECE]
    for start in range(PIECE, len(body), PIECE):
        yield body[start : start + PIECE]
