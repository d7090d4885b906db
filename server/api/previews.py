"""Previews on their way from the model's thread to the request that streams them."""

import asyncio
from contextlib import suppress

from pipelines.types import Preview


class LatestPreviews:
    """The newest preview of each image that has not been taken yet.

    A client that is slower than the device misses previews; what waits for it never grows beyond one for each image.
    Made and read on the event loop; `put` and `wake` may be called on any thread.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrival = asyncio.Event()
        self._newest: dict[int, Preview] = {}

    def put(self, preview: Preview) -> None:
        """Store a preview in place of an older one of the same image."""
        with suppress(RuntimeError):  # the loop is closed: the server has stopped
            self._loop.call_soon_threadsafe(self._store, preview)

    def wake(self, _: object = None) -> None:
        """Make `take` return, because no preview will follow."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._arrival.set)

    async def take(self, seconds: float | None) -> list[Preview]:
        """Return what has arrived, waiting for it at most `seconds`; nothing after that, or after `wake`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._arrival.wait()
        self._arrival.clear()
        previews = sorted(self._newest.values(), key=lambda preview: preview.image)
        self._newest.clear()
        return previews

    def _store(self, preview: Preview) -> None:
        self._newest[preview.image] = preview
        self._arrival.set()
