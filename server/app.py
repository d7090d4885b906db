"""The ASGI application: `create_app`. Importing this module has no effects."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.types import Scope

from server.api.access import enforce_access
from server.api.error_responses import install_error_handlers
from server.api.exchange import complete_exchanges
from server.api.middleware import PROBES, trace_requests
from server.api.openapi import install_docs
from server.api.paths import normalize_paths
from server.api.routes import answer_head, install_routes
from server.api.state import AppState, Capacity


def observe_response(state: AppState, scope: Scope, status: int, started: float) -> None:
    """Count a request that has ended, and record its trace unless it is a probe."""
    state.metrics.count_response(scope, status)
    if state.tracing is not None and scope["path"] not in PROBES:
        state.tracing.record(scope, status, started)


def create_app(state: AppState) -> FastAPI:
    """Return an application that starts the engine at startup and stops it at shutdown."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        state.engine.start()
        state.tags.start()
        if state.archive is not None:
            state.archive.start()
        yield
        await asyncio.to_thread(state.engine.stop)
        if state.archive is not None:
            await asyncio.to_thread(state.archive.stop)
        if state.tracing is not None:
            await asyncio.to_thread(state.tracing.close)

    capacity = Capacity(state)
    app = FastAPI(
        title="naiad",
        lifespan=lifespan,
        openapi_url=None,
        redirect_slashes=False,
        middleware=[
            Middleware(complete_exchanges, memory=capacity.memory, on_disconnect=state.on_disconnect),
            Middleware(normalize_paths, prefixes=state.prefixes),
            Middleware(trace_requests, observe=partial(observe_response, state)),
            Middleware(enforce_access, rules=state.access),
        ],
    )
    app.state.naiad, app.state.capacity = state, capacity
    install_error_handlers(app)
    install_routes(app)
    install_docs(app, state.access)
    answer_head(app)
    return app
