"""From a request to a job's result: receive the body, decode its images, and wait for the engine or the client."""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, TypeVarTuple

from fastapi import Request

from pipelines.cost import count_images
from pipelines.job import Work
from pipelines.types import OnPreview
from server.api.accounts import Account
from server.api.active_jobs import ActiveJob, JobName, SharedRequest
from server.api.body import read_body
from server.api.deadline import read_deadline
from server.api.image_fields import recall_images
from server.api.retries import RequestKey, identify_request, read_correlation_id
from server.api.state import AppState, get_account, get_app_state, get_capacity, get_reservation
from server.api.threads import call_in_thread
from server.api.timings import add_result
from server.engine.ticket import Result
from server.errors import Disconnected
from server.request.resolve import ResolvedRequest

Args = TypeVarTuple("Args")
Decoded = TypeVar("Decoded")
Done = TypeVar("Done")


async def receive_body(request: Request, state: AppState) -> dict[str, object]:
    """Return the JSON object of a request for a job, with its images, unless no job is accepted now."""
    _admit(request)  # so that nothing is received in vain
    held, shared = get_reservation(request), get_capacity(request)
    body = await read_body(request, state.body_limits, held, shared.parsing)
    sender = shared.images.identify(request.headers.get("authorization", ""))
    client = identify_client(request, get_account(request))
    request.scope["request_key"] = await identify_request(request, body, sender, client)
    images = recall_images(body, shared.images, sender)
    held.resize(held.size + images.recalled)  # dropped from the cache, they would still be held here
    request.scope["cached_images"] = images
    return body


async def decode_in_slot(request: Request, decode: Callable[[*Args], Decoded], *args: *Args) -> Decoded:
    """Call a function that decodes a request's images in a thread, at most `decode_limit` of them at a time.

    Images that were sent with a key are then kept in the cache.

    Raises `Disconnected` if the client hangs up first; it then waits for no slot. A thread that decodes already
    cannot be interrupted and keeps its slot to the end.
    """
    _admit(request)  # the queue may be full by now
    images = request.scope.pop("cached_images", None)

    def decode_and_keep() -> Decoded:
        decoded = decode(*args)
        if images is not None:
            images.keep()
        return decoded

    return await run_in_slot(request, get_capacity(request).decoding, decode_and_keep)


async def run_in_slot(
    request: Request, slots: asyncio.Semaphore, function: Callable[[*Args], Done], *args: *Args
) -> Done:
    """Call a function in a thread once there is a free slot, or raise `Disconnected` if the client hangs up first."""

    async def wait_and_run() -> Done:
        await slots.acquire()
        running = asyncio.ensure_future(call_in_thread(function, *args))
        running.add_done_callback(lambda _: slots.release())
        return await asyncio.shield(running)

    return await run_for_client(request, wait_and_run())


@dataclass(frozen=True, slots=True)
class Waiter:
    """A request that waits for a job; to wait no longer it cancels `result`."""

    job: ActiveJob
    result: asyncio.Future[Result]


def submit_images(
    request: Request, resolved: ResolvedRequest, on_preview: OnPreview | None = None
) -> tuple[Waiter, ResolvedRequest]:
    """Queue the job of a request for images, unless that of a request of which this one is a retry has not ended.

    Returns the wait for either job, and the request that it is of, whose seeds are those of the images. Raises what
    `submit_job` does.
    """
    key: RequestKey | None = request.scope.get("request_key")
    job, listeners = get_capacity(request).jobs.find_repeated(key), [] if on_preview is None else [on_preview]
    if job is not None and job.request is not None:
        job.request.listeners.extend(listeners)
        request.scope["job_id"] = job.name.id
        return _join(request, job), job.request.resolved
    shared = SharedRequest(resolved, key, listeners)
    job = _start_job(request, resolved.job, shared.show if listeners else None, shared)
    return _join(request, job), resolved


def submit_job(request: Request, work: Work) -> Waiter:
    """Queue a job that is no request for images. A request has one job at a time.

    Raises `LimitReached` or `Overloaded` if the account may not have the job now, and what `Engine.submit` raises.
    """
    return _join(request, _start_job(request, work))


def _join(request: Request, job: ActiveJob) -> Waiter:
    """Let a request wait for a job, until its deadline."""
    result, deadline, engine = job.join(), read_deadline(request), get_app_state(request).engine
    if deadline is not None:
        deadline.apply(result, partial(engine.expect_end, without=job.ticket))
    return Waiter(job, result)


def _start_job(
    request: Request, work: Work, on_preview: OnPreview | None = None, shared: SharedRequest | None = None
) -> ActiveJob:
    """Queue a job with the priority of the request's account, and within its quota."""
    account, quotas = get_account(request), get_capacity(request).quotas
    client = identify_client(request, account)
    use = quotas.begin(account, count_images(work), _expect_end(request))
    priority = 0 if account is None else account.priority
    try:
        ticket = get_app_state(request).engine.submit(work, priority, on_preview, client)
    except BaseException:
        quotas.end(use, refund=True)
        raise
    # before the result reaches the client, or once it has hung up: its next request may then begin
    ticket.call_at_end(lambda has_succeeded: quotas.end(use, refund=not has_succeeded))
    request.scope["job_id"] = request.scope["request_id"]
    name = JobName(request.scope["job_id"], client, read_correlation_id(request))
    return get_capacity(request).jobs.add(name, ticket, shared)


def identify_client(request: Request, account: Account | None) -> str:
    """Return whose jobs share one part of the device: the account's, else those from the same address."""
    if account is not None:
        return f"account {account.name}"
    return f"address {request.client.host}" if request.client else ""


@contextmanager
def hold_quota(request: Request, images: int = 1) -> Generator[None]:
    """Hold the quota of the request's account for work that is no job of the engine; refund it if that raises."""
    quotas = get_capacity(request).quotas
    use = quotas.begin(get_account(request), images, _expect_end(request))
    try:
        yield
    except BaseException:
        quotas.end(use, refund=True)
        raise
    quotas.end(use, refund=False)


def _admit(request: Request) -> None:
    """Raise what submitting a job of one image would raise now, unless this may be a retry, which needs no room."""
    account, shared, engine = get_account(request), get_capacity(request), get_app_state(request).engine
    client = identify_client(request, account)
    if not shared.jobs.find(read_correlation_id(request), client):
        engine.admit(client=client)
        shared.quotas.check(account, free_in=_expect_end(request))


def _expect_end(request: Request) -> float | None:
    """Return in how many seconds the first job of the request's account ends; None if it may have any number."""
    account = get_account(request)
    if account is None or account.concurrency is None:
        return None
    return get_app_state(request).engine.expect_end(identify_client(request, account))


async def run_job(request: Request, work: Work) -> Result:
    """Return the result of a request's job; its images count as memory that the request holds."""
    result = await wait_for_result(submit_job(request, work), request)
    get_reservation(request).hold(sum(image.nbytes for image in result.images))
    return result


async def wait_for_result(waiter: Waiter, request: Request) -> Result:
    """Return the result of a job; wait no longer and raise `Disconnected` if the client hangs up first."""
    result = await run_for_client(request, waiter.result)
    add_result(request.scope, waiter.job.ticket, result)
    return result


async def run_for_client(request: Request, work: Awaitable[Done]) -> Done:
    """Return what `work` returns, or cancel it and raise `Disconnected` if the client hangs up first."""
    done, disconnect = asyncio.ensure_future(work), asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait((done, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise Disconnected
        return done.result()
    finally:
        disconnect.cancel()
        done.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
