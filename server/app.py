"""The ASGI application: `create_app`. Importing this module has no effects."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware import Middleware

from server.api.access import enforce_access
from server.api.middleware import trace_requests
from server.api.routes import install_routes
from server.api.state import AppState
from server.errors import install_handlers


def create_app(state: AppState) -> FastAPI:
    """Return an application that starts the engine at startup and stops it at shutdown."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        state.engine.start()
        yield
        await asyncio.to_thread(state.engine.stop)

    app = FastAPI(
        title="naiad",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        middleware=[Middleware(trace_requests), Middleware(enforce_access, rules=state.access)],
    )
    app.state.naiad = state
    app.state.decode_slots = asyncio.Semaphore(state.decode_limit)
    install_handlers(app)
    install_routes(app)
    return app


def app_state(request: Request) -> AppState:
    """What the application was made around."""
    return cast("AppState", request.app.state.house)


Here = Annotated[AppState, Depends(app_state)]


async def hello() -> dict[str, str]:
    """Some clients ask whether anybody is there."""
    return {"name": "naiad"}


async def live() -> dict[str, str]:
    """The process answers; says nothing of the model."""
    return {"status": "alive"}


async def ready(house: Here) -> JSONResponse:
    """Whether a picture can be asked for now: 200 or 503."""
    engine = house.engine
    if engine.state is State.READY:
        return JSONResponse({"state": engine.state.value, "waiting": engine.waiting})
    return errors.envelope(503, engine.failure or f"the engine is {engine.state.value}")


async def models(house: Here) -> dict[str, object]:
    """What is served, and how its nature is known."""
    return {"models": [house.policy.served.card()]}


async def key(house: Here) -> JSONResponse:
    """The public key that this server's pictures are signed with."""
    if house.metadata.key is None:
        return errors.envelope(404, "pictures of this server are not signed (setting metadata)")
    return JSONResponse({"algorithm": "Ed25519", "key": house.metadata.key.public})


async def account_page(page: str) -> Response:
    """What NAI's clients read of an account before they draw."""
    return AccountResponse(PAGES[page])


async def login(request: Request, house: Here) -> Response:
    """A token for an access key that is listed; where everybody may come in, one that opens nothing."""
    sent = await read_body(request, house.body_limit, house.body_timeout)
    token = log_in(sent.get("key"), house.accounts, is_open=not house.access.tokens)
    return AccountResponse({"accessToken": token}, 201)


async def create_persistent_token(request: Request, house: Here) -> Response:
    """The token that the request itself was let in with, as it does not expire."""
    own = house.access.find_token(request.headers.get("authorization", ""))
    return AccountResponse({"token": own or generate_token()}, 201)


async def generate_image(request: Request, house: Here) -> Response:
    """Draw pictures and answer in the form that `Accept` asks for, NAI's ZIP unless it asks for another."""
    sent = await read_body(request, house.body_limit, house.body_timeout)
    resolved = await read_in_thread(request, resolve, read_request(sent), house.policy)
    kind = negotiate(request.headers.get("accept"), resolved.image_format)
    drawn = await wait_for_result(house.engine.submit(resolved.job), request)
    started = perf_counter()
    pictures = await write_pictures(house.metadata, resolved, drawn)
    response = await asyncio.to_thread(
        pictures_response, kind, pictures, resolved.job.passes[0].seeds, resolved.image_format
    )
    encoding = perf_counter() - started
    response.headers["Server-Timing"] = ", ".join(
        f"{name};dur={1000 * seconds:.1f}"
        for name, seconds in (
            ("queue", drawn.queue_seconds),
            ("draw", drawn.run_seconds),
            ("encode", encoding),
        )
    )
    if resolved.warnings:
        response.headers["X-Naiad-Warning"] = ascii("; ".join(resolved.warnings))[1:-1][:1000]
    return response


async def upscale(request: Request, house: Here) -> Response:
    """Enlarge a picture; answered like drawn ones."""
    sent = await read_body(request, house.body_limit, house.body_timeout)
    asked = await read_in_thread(request, read_upscale, sent)
    kind = negotiate(request.headers.get("accept"), asked.image_format)
    drawn = await wait_for_result(house.engine.submit(asked.work), request)
    network = house.policy.served.upscaler
    file = await asyncio.to_thread(
        write_upscaled, house.metadata, asked, drawn, "lanczos" if network is None else network.name
    )
    response = await asyncio.to_thread(pictures_response, kind, [file], [0], asked.image_format)
    if network is None:
        log.warning("upscale: no network is loaded; a picture was enlarged by Lanczos")
        response.headers["X-Naiad-Warning"] = "upscale: no network is loaded; enlarged by Lanczos"
    return response


async def read_in_thread(
    request: Request, read: Callable[Given, Read], *given: Given.args, **named: Given.kwargs
) -> Read:
    """Read a request in a thread, for the pictures that may come with it; few at once, and none if there is no room."""
    app_state(request).engine.admit()
    async with cast("asyncio.Semaphore", request.app.state.unpacking):
        return await asyncio.to_thread(read, *given, **named)


async def write_pictures(imprint: MetadataPolicy, resolved: ResolvedRequest, drawn: Result) -> list[bytes]:
    """A job's pictures as files, each in a thread of its own."""
    return await asyncio.gather(
        *(
            asyncio.to_thread(
                write_job_picture,
                imprint,
                resolved.job,
                drawn,
                index,
                resolved.recorded,
                resolved.image_format,
            )
            for index in range(len(drawn.pictures))
        )
    )


async def wait_for_result(ticket: Ticket, request: Request) -> Result:
    """Wait for a ticket, and call it off when the client hangs up."""
    result = asyncio.ensure_future(asyncio.wrap_future(ticket.future))
    gone = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait((result, gone), return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise errors.Unavailable("the client has gone")
        return result.result()
    finally:
        gone.cancel()
        if not result.done():
            result.cancel()
            ticket.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
