"""The jobs in the engine as the requests that wait for them see them. Used on the event loop only."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pipelines.types import OnPreview, Preview
from server.api.retries import RequestKey
from server.engine.ticket import CancelReason, Result, Ticket
from server.errors import Conflict
from server.request.resolve import ResolvedRequest

MOST_ENDED = 512
"""Jobs that have ended and are still known by their ids."""


@dataclass(frozen=True, slots=True)
class JobName:
    """What a job is found by.

    Attributes:
        id: that of the request which submitted it.
        client: whose job it is.
        correlation_id: what the client calls the request; empty if it has no name for it.
    """

    id: str
    client: str
    correlation_id: str = ""

    def matches(self, name: str, client: str | None) -> bool:
        """Return whether `name` is one of the ids, and the job the client's; None sees the jobs of all."""
        is_named = name == self.id or (name != "" and name == self.correlation_id)
        return is_named and client in (None, self.client)


@dataclass(frozen=True, slots=True)
class SharedRequest:
    """What a request for images shares with its retries, whose images are drawn once.

    Attributes:
        resolved: the request with the seeds that were picked.
        key: what its retries have too; None if it has none.
        listeners: called with the previews of the images.
    """

    resolved: ResolvedRequest
    key: RequestKey | None = None
    listeners: list[OnPreview] = field(default_factory=list[OnPreview])

    def show(self, preview: Preview) -> None:
        """Call the listeners. Can be called on any thread."""
        for listener in tuple(self.listeners):
            listener(preview)


class ActiveJob:
    """A job that has not ended, and the requests that wait for it. It is cancelled as soon as none does."""

    def __init__(
        self,
        name: JobName,
        ticket: Ticket,
        forget: "Callable[[ActiveJob], None]",
        request: SharedRequest | None = None,
    ) -> None:
        self.name, self.ticket, self.request, self._forget = name, ticket, request, forget
        self._files: asyncio.Future[list[bytes]] | None = None
        self._takers = 0  # of the files
        self._results: set[asyncio.Future[Result]] = set()
        self._loop = asyncio.get_running_loop()
        ticket.future.add_done_callback(lambda _: self._settle_soon())

    def join(self) -> asyncio.Future[Result]:
        """Return a future of the result for one more request, which cancels it if it waits no longer."""
        result: asyncio.Future[Result] = self._loop.create_future()
        self._results.add(result)
        result.add_done_callback(self._leave)
        return result

    async def share_files(self, encode: Callable[[], Coroutine[Any, Any, list[bytes]]]) -> list[bytes]:
        """Return the files of the job's images, which are encoded once for all requests; for none, no further one."""
        if self._files is None:
            self._files = asyncio.ensure_future(encode())
        files = self._files
        self._takers += 1
        try:
            return await asyncio.shield(files)
        finally:
            self._takers -= 1
            if not self._takers:
                files.cancel()
                self._files = None

    def fail(self, error: Exception) -> None:
        """Raise an error in all requests that wait, which cancels the job."""
        self._forget(self)
        for result in self._results:
            if not result.done():
                result.set_exception(error)

    def _leave(self, result: asyncio.Future[Result]) -> None:
        self._results.discard(result)
        if not result.cancelled():
            result.exception()  # asyncio would log one that no request retrieves because all have gone
        if not self._results and not self.ticket.future.done():
            self._forget(self)
            self.ticket.cancel(_find_reason(result))

    def _settle_soon(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server has stopped
            self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        """Hand over the ticket's result, or its error."""
        self._forget(self)
        future = self.ticket.future
        waiting = () if future.cancelled() else [result for result in self._results if not result.done()]
        for result in waiting:
            error = future.exception()
            if error is None:
                result.set_result(future.result())
            else:
                result.set_exception(error)


def _find_reason(result: asyncio.Future[Result]) -> CancelReason:
    """Return why a request waits no longer."""
    if result.cancelled():
        return "disconnect"
    return "request" if isinstance(result.exception(), Conflict) else "deadline"


class ActiveJobs:
    """All jobs that have not ended, and the names of the last ones that have."""

    def __init__(self) -> None:
        self._jobs: dict[str, ActiveJob] = {}
        self._ended: deque[JobName] = deque(maxlen=MOST_ENDED)

    def __iter__(self) -> Iterator[ActiveJob]:
        return iter(tuple(self._jobs.values()))

    def add(self, name: JobName, ticket: Ticket, request: SharedRequest | None = None) -> ActiveJob:
        """Add a job that has been submitted; it is removed when it ends."""
        self._jobs[name.id] = job = ActiveJob(name, ticket, self._forget, request)
        return job

    def find_repeated(self, key: RequestKey | None) -> ActiveJob | None:
        """Return the job of a request that is sent again."""
        found = (
            job for job in self if key is not None and job.request is not None and job.request.key == key
        )
        return next(found, None)

    def find(self, name: str, client: str | None) -> list[ActiveJob]:
        """Return the jobs whose id, or whose client's name for it, is `name`, see `JobName.matches`."""
        return [job for job in self if job.name.matches(name, client)]

    def has_ended(self, name: str, client: str | None) -> bool:
        """Return whether `find` would have returned one of the last jobs that have ended."""
        return any(ended.matches(name, client) for ended in self._ended)

    def _forget(self, job: ActiveJob) -> None:
        if self._jobs.pop(job.name.id, None) is not None:
            self._ended.append(job.name)
