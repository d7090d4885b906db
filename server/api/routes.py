"""The routes of the API: health and model facts, NAI's account pages, image generation and upscaling."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from time import perf_counter
from typing import TypeVar, TypeVarTuple

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from server.api.access import generate_token
from server.api.accounts import ACCOUNT_PAGES, choose_login_token
from server.api.body import BodyLimits, read_body
from server.api.memory import measure_work
from server.api.responses import build_image_response, negotiate
from server.api.state import AppState, StateDependency, app_state, capacity, reservation
from server.api.upscale import Upscale, read_upscale, write_upscaled
from server.engine.engine import Result, State, Ticket
from server.errors import Unavailable, build_envelope
from server.picture.writer import MetadataPolicy, write_job_picture
from server.request.resolve import ResolvedRequest, resolve
from server.request.schema import read_request

log = logging.getLogger("naiad")
Args = TypeVarTuple("Args")
Decoded = TypeVar("Decoded")
Done = TypeVar("Done")
LOGIN_LIMIT = 16 * 1024
"""Bytes of a login's body: an access key of 64 characters, and some clients' captcha token."""


class AccountResponse(JSONResponse):
    """JSON that names its charset, because an old client takes bare `application/json` for an error."""

    media_type = "application/json; charset=utf-8"


def install_routes(app: FastAPI) -> None:
    """Add all routes to an application whose `state.naiad` is an `AppState`."""
    get = partial(app.api_route, methods=["GET", "HEAD"])  # monitors and proxies ask by HEAD
    get("/")(get_root)
    get("/live")(get_live)
    get("/ready")(get_ready)
    get("/models")(get_models)
    get("/key")(get_key)
    for page in ACCOUNT_PAGES:
        get(f"/user/{page}")(partial(get_account_page, page))
    app.post("/user/login")(log_in)
    app.post("/user/create-persistent-token")(create_persistent_token)
    app.post("/ai/generate-image")(generate_image)
    app.post("/ai/upscale")(upscale_image)


async def get_root() -> dict[str, str]:
    """Answer the clients that check whether the address responds."""
    return {"name": "naiad"}


async def get_live() -> dict[str, str]:
    """Liveness probe: 200 while the process responds, in any state of the engine."""
    return {"status": "alive"}


async def get_ready(state: StateDependency) -> JSONResponse:
    """Readiness probe: 200 when jobs are accepted, else 503."""
    engine = state.engine
    if engine.state is State.READY:
        return JSONResponse({"state": engine.state.value, "waiting": engine.waiting})
    return build_envelope(503, engine.failure or f"the engine is {engine.state.value}")


async def get_models(state: StateDependency) -> dict[str, object]:
    """The facts about the model and the evidence for them."""
    return {"models": [state.current_policy().model.card()]}


async def get_key(state: StateDependency) -> JSONResponse:
    """The public key that this server signs its images with."""
    if state.metadata.key is None:
        return build_envelope(404, "this server does not sign its images (setting metadata)")
    return JSONResponse({"algorithm": "Ed25519", "key": state.metadata.key.public})


async def get_account_page(page: str) -> Response:
    """A page about the account, which NAI's clients read before they generate."""
    return AccountResponse(ACCOUNT_PAGES[page])


async def log_in(request: Request, state: StateDependency) -> Response:
    """Return the token of a listed access key; if the server needs no tokens, one that grants nothing."""
    limits = BodyLimits(LOGIN_LIMIT, state.body_timeout)
    body = await read_body(request, limits, reservation(request), capacity(request).parsing)
    token = choose_login_token(body.get("key"), state.accounts, needs_token=bool(state.access.tokens))
    return AccountResponse({"accessToken": token}, 201)


async def create_persistent_token(request: Request, state: StateDependency) -> Response:
    """Return the token that the request was authorized with, because it does not expire."""
    token = state.access.find_token(request.headers.get("authorization", ""))
    return AccountResponse({"token": token or generate_token()}, 201)


async def generate_image(request: Request, state: StateDependency) -> Response:
    """Generate images and return them in the form that `Accept` asks for, by default NAI's ZIP."""
    resolved = await receive_generate(request, state)
    media_type = negotiate(request.headers, resolved.image_format, state.zip_type)
    result = await wait_for_result(state.engine.submit(resolved.job), request)
    reservation(request).hold(sum(image.nbytes for image in result.images))
    started = perf_counter()
    images = await encode_images(state.metadata, resolved, result)
    seeds = resolved.job.passes[0].seeds
    response = await asyncio.to_thread(build_image_response, media_type, images, seeds, resolved.image_format)
    timings = {"queue": result.queue_seconds, "draw": result.run_seconds, "encode": perf_counter() - started}
    entries = (f"{name};dur={1000 * seconds:.1f}" for name, seconds in timings.items())
    response.headers["Server-Timing"] = ", ".join(entries)
    if resolved.warnings:
        response.headers["X-Naiad-Warning"] = ascii("; ".join(resolved.warnings))[1:-1][:1000]
    return response


async def upscale_image(request: Request, state: StateDependency) -> Response:
    """Upscale an image and return it in the forms that generated images have."""
    upscale = await receive_upscale(request, state)
    media_type = negotiate(request.headers, upscale.image_format, state.zip_type)
    result = await wait_for_result(state.engine.submit(upscale.job), request)
    reservation(request).hold(sum(image.nbytes for image in result.images))
    upscaler = state.policy.model.upscaler
    method = "lanczos" if upscaler is None else upscaler.name
    image = await asyncio.to_thread(write_upscaled, state.metadata, upscale, result, method)
    response = await asyncio.to_thread(build_image_response, media_type, [image], [0], upscale.image_format)
    if upscaler is None:
        log.warning("upscale: no upscaler is loaded; an image was upscaled by Lanczos")
        response.headers["X-Naiad-Warning"] = "upscale: no upscaler is loaded; upscaled by Lanczos"
    return response


async def receive_generate(request: Request, state: AppState) -> ResolvedRequest:
    """Return a request to generate images, read and resolved; its body is not kept."""
    sent = await asyncio.to_thread(read_request, await _receive(request, state))
    if sent.task == "generate":  # without images: it need not wait for a slot
        return await asyncio.to_thread(resolve, sent, state.current_policy())
    resolved = await decode_in_slot(request, resolve, sent, state.current_policy())
    reservation(request).resize(measure_work(resolved.job))
    return resolved


async def receive_upscale(request: Request, state: AppState) -> Upscale:
    """Return a request to upscale an image, read and decoded; its body is not kept."""
    upscale = await decode_in_slot(request, read_upscale, await _receive(request, state))
    reservation(request).resize(measure_work(upscale.job))
    return upscale


async def _receive(request: Request, state: AppState) -> dict[str, object]:
    state.engine.admit()  # raises Unavailable or Overloaded, so that nothing is received in vain
    return await read_body(request, state.body_limits, reservation(request), capacity(request).parsing)


async def decode_in_slot(request: Request, decode: Callable[[*Args], Decoded], *args: *Args) -> Decoded:
    """Call a function that decodes a request's images in a thread, at most `decode_limit` of them at a time.

    Raises `Unavailable` if the client disconnects first; it then waits for no slot. A thread that decodes already
    cannot be interrupted and keeps its slot to the end.
    """
    app_state(request).engine.admit()  # the queue may be full by now
    slots = capacity(request).decoding

    async def wait_and_decode() -> Decoded:
        await slots.acquire()
        decoding = asyncio.ensure_future(asyncio.to_thread(decode, *args))
        decoding.add_done_callback(lambda _: slots.release())
        return await asyncio.shield(decoding)

    return await run_for_client(request, wait_and_decode())


async def encode_images(metadata: MetadataPolicy, resolved: ResolvedRequest, result: Result) -> list[bytes]:
    """Return a job's images as files, each encoded in a thread of its own."""
    recorded, image_format = resolved.recorded, resolved.image_format

    def encode(index: int) -> bytes:
        return write_job_picture(metadata, resolved.job, result, index, recorded, image_format)

    return await asyncio.gather(*(asyncio.to_thread(encode, index) for index in range(len(result.images))))


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
