"""The routes of the API: health and model facts, NAI's account pages, image generation and upscaling."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import TypeVar, TypeVarTuple, cast

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from server.api.access import generate_token
from server.api.accounts import ACCOUNT_PAGES, choose_login_token
from server.api.body import read_body
from server.api.responses import build_image_response, negotiate
from server.api.state import StateDependency, app_state
from server.api.upscale import read_upscale, write_upscaled
from server.engine.engine import Result, State, Ticket
from server.errors import Unavailable, build_envelope
from server.picture.writer import MetadataPolicy, write_job_picture
from server.request.resolve import ResolvedRequest, resolve
from server.request.schema import read_request

log = logging.getLogger("naiad")
Args = TypeVarTuple("Args")
Decoded = TypeVar("Decoded")


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
    body = await read_body(request, state.body_limit, state.body_timeout)
    token = choose_login_token(body.get("key"), state.accounts, needs_token=bool(state.access.tokens))
    return AccountResponse({"accessToken": token}, 201)


async def create_persistent_token(request: Request, state: StateDependency) -> Response:
    """Return the token that the request was authorized with, because it does not expire."""
    token = state.access.find_token(request.headers.get("authorization", ""))
    return AccountResponse({"token": token or generate_token()}, 201)


async def generate_image(request: Request, state: StateDependency) -> Response:
    """Generate images and return them in the form that `Accept` asks for, by default NAI's ZIP."""
    body = await read_body(request, state.body_limit, state.body_timeout)
    resolved = await decode_in_thread(request, resolve, read_request(body), state.current_policy())
    media_type = negotiate(request.headers, resolved.image_format, state.zip_type)
    result = await wait_for_result(state.engine.submit(resolved.job), request)
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
    body = await read_body(request, state.body_limit, state.body_timeout)
    upscale = await decode_in_thread(request, read_upscale, body)
    media_type = negotiate(request.headers, upscale.image_format, state.zip_type)
    result = await wait_for_result(state.engine.submit(upscale.job), request)
    upscaler = state.policy.model.upscaler
    method = "lanczos" if upscaler is None else upscaler.name
    image = await asyncio.to_thread(write_upscaled, state.metadata, upscale, result, method)
    response = await asyncio.to_thread(build_image_response, media_type, [image], [0], upscale.image_format)
    if upscaler is None:
        log.warning("upscale: no upscaler is loaded; an image was upscaled by Lanczos")
        response.headers["X-Naiad-Warning"] = "upscale: no upscaler is loaded; upscaled by Lanczos"
    return response


async def decode_in_thread(request: Request, decode: Callable[[*Args], Decoded], *args: *Args) -> Decoded:
    """Call a function that decodes a request's images in a thread, at most `decode_limit` of them at a time."""
    app_state(request).engine.admit()  # raises Unavailable or Overloaded, so that nothing is decoded in vain
    async with cast("asyncio.Semaphore", request.app.state.decode_slots):
        return await asyncio.to_thread(decode, *args)


async def encode_images(metadata: MetadataPolicy, resolved: ResolvedRequest, result: Result) -> list[bytes]:
    """Return a job's images as files, each encoded in a thread of its own."""
    recorded, image_format = resolved.recorded, resolved.image_format

    def encode(index: int) -> bytes:
        return write_job_picture(metadata, resolved.job, result, index, recorded, image_format)

    return await asyncio.gather(*(asyncio.to_thread(encode, index) for index in range(len(result.images))))


async def wait_for_result(ticket: Ticket, request: Request) -> Result:
    """Return the result of a ticket, or cancel the ticket and raise `Unavailable` if the client disconnects first."""
    result = asyncio.ensure_future(asyncio.wrap_future(ticket.future))
    disconnect = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait((result, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise Unavailable("the client has disconnected")  # nothing receives this response
        return result.result()
    finally:
        disconnect.cancel()
        if not result.done():
            result.cancel()
            ticket.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
