"""The HTTP application: `create_app` and its routes; nothing happens at import."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, cast

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response

from server import errors
from server.archive import zipped
from server.door import guard
from server.engine import Drawn, Engine, State, Ticket
from server.pictures import encoded
from server.resolve import resolve
from server.served import Served
from server.wire import GenerateRequest

ZIP_HEADERS = {"Content-Disposition": 'attachment; filename="images.zip"'}


def create_app(served: Served, engine: Engine, token: str | None = None) -> FastAPI:
    """An application around an engine that it starts and stops.

    Args:
        served: the model the engine will load.
        token: the bearer token that guarded paths need; None lets everybody in.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.stop)

    app = FastAPI(title="naiad", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.served, app.state.engine = served, engine
    errors.install(app)
    if token is not None:
        app.middleware("http")(guard(token))
    app.get("/")(hello)
    app.get("/live")(live)
    app.get("/ready")(ready)
    app.get("/models")(models)
    app.post("/ai/generate-image")(generate_image)
    return app


def the_engine(request: Request) -> Engine:
    """The engine of the application a request came to."""
    return cast("Engine", request.app.state.engine)


def the_model(request: Request) -> Served:
    """The model of the application a request came to."""
    return cast("Served", request.app.state.served)


EngineHere = Annotated[Engine, Depends(the_engine)]
ModelHere = Annotated[Served, Depends(the_model)]


async def hello() -> dict[str, str]:
    """Some clients ask whether anybody is there."""
    return {"name": "naiad"}


async def live() -> dict[str, str]:
    """The process answers; says nothing of the model."""
    return {"status": "alive"}


async def ready(engine: EngineHere) -> JSONResponse:
    """Whether a picture can be asked for now: 200 or 503."""
    told: dict[str, object] = {"state": engine.state.value, "waiting": engine.waiting}
    if engine.failure is not None:
        told["message"] = engine.failure
    return JSONResponse(told, 200 if engine.state is State.READY else 503)


async def models(served: ModelHere) -> dict[str, object]:
    """What is served, and how its nature is known."""
    return {"models": [served.card()]}


async def generate_image(
    body: GenerateRequest, request: Request, engine: EngineHere, served: ModelHere
) -> Response:
    """Draw pictures: NAI's ZIP, or with exactly `Accept: image/png` the first picture bare."""
    resolved = resolve(body, served.profile)
    ticket = engine.submit(resolved.job)
    drawn = await answered(ticket, request)
    pictures = await asyncio.to_thread(encoded, ticket.job, drawn, served.fingerprint)
    headers = {"X-Naiad-Warning": "; ".join(resolved.warnings)} if resolved.warnings else {}
    if request.headers.get("accept") == "image/png":
        return Response(pictures[0], media_type="image/png", headers=headers)
    return Response(zipped(pictures), media_type="binary/octet-stream", headers=headers | ZIP_HEADERS)


async def answered(ticket: Ticket, request: Request) -> Drawn:
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
