"""A response whose body is a stream of frames, which ends with a frame also when it fails."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.jobs import run_for_client

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""The second makes nginx pass on each frame at once."""


class EventResponse(Response):
    """Sends frames as they come.

    Args:
        first: the first frame; the response begins with it.
        frames: those after it. Closed if the client disconnects, or if the server stops.
        encode_error: returns the last frame of a stream that fails, or that ends because the server stops.
    """

    def __init__(
        self,
        first: bytes,
        frames: AsyncGenerator[bytes],
        encode_error: Callable[[BaseException], bytes],
        media_type: str,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(headers={**HEADERS, **headers, "Content-Type": media_type})
        del self.headers["Content-Length"]
        self._first, self._frames, self._encode_error = first, frames, encode_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            await _send_frame(send, self._first)
            while (frame := await self._take_frame(request)) is not None:
                await _send_frame(send, frame)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 -- the status has been sent
            await _send_frame(send, self._encode_error(error))
        finally:
            await self._frames.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _take_frame(self, request: Request) -> bytes | None:
        """Return the next frame, or None after the last; raise `Disconnected` if the client hangs up first."""
        frame = asyncio.ensure_future(anext(self._frames, None))
        try:
            return await run_for_client(request, frame)
        finally:
            await asyncio.wait([frame])  # a generator that still runs cannot be closed


async def _send_frame(send: Send, frame: bytes) -> None:
    """Send a frame to its end, even if the task is cancelled: another frame may only follow a complete one."""
    await _finish(send({"type": "http.response.body", "body": frame, "more_body": True}))


async def _finish(work: Awaitable[None]) -> None:
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
