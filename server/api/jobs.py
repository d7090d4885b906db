"""From a request to a job's result: receive the body, decode its images, and wait for the engine or the client."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

from fastapi import Request

from server.api.body import read_body
from server.api.state import AppState, app_state, capacity, reservation
from server.engine.engine import Result, Ticket
from server.errors import Unavailable

Args = TypeVarTuple("Args")
Decoded = TypeVar("Decoded")
Done = TypeVar("Done")


async def receive_body(request: Request, state: AppState) -> dict[str, object]:
    """Return the JSON object of a request for a job, unless no job is accepted now."""
    state.engine.admit()  # raises Unavailable or Overloaded, so that nothing is received in vain
    return await read_body(request, state.body_limits, reservation(request), capacity(request).parsing)


async def decode_in_slot(request: Request, decode: Callable[[*Args], Decoded], *args: *Args) -> Decoded:
    """Call a function that decodes a request's images in a thread, at most `decode_limit` of them at a time.

    Raises `Unavailable` if the client disconnects first; it then waits for no slot. A thread that decodes already
    cannot be interrupted and keeps its slot to the end.
    """
    app_state(request).engine.admit()  # the queue may be full by now
    return await run_in_slot(request, capacity(request).decoding, decode, *args)


async def run_in_slot(
    request: Request, slots: asyncio.Semaphore, function: Callable[[*Args], Done], *args: *Args
) -> Done:
    """Call a function in a thread once there is a free slot, or raise `Unavailable` if the client disconnects first."""

    async def wait_and_run() -> Done:
        await slots.acquire()
        running = asyncio.ensure_future(asyncio.to_thread(function, *args))
        running.add_done_callback(lambda _: slots.release())
        return await asyncio.shield(running)

    return await run_for_client(request, wait_and_run())


async def wait_for_result(ticket: Ticket, request: Request) -> Result:
    """Return the result of a ticket, or cancel the ticket and raise `Unavailable` if the client disconnects first."""
    try:
        return await run_for_client(request, asyncio.wrap_future(ticket.future))
    except (Unavailable, asyncio.CancelledError):
        ticket.cancel()
        raise


async def run_for_client(request: Request, work: Awaitable[Done]) -> Done:
    """Return what `work` returns, or cancel it and raise `Unavailable` if the client disconnects first."""
    done, disconnect = asyncio.ensure_future(work), asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait((done, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise Unavailable("the client has disconnected")  # nothing receives this response
        return done.result()
    finally:
        disconnect.cancel()
        done.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
