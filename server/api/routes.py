"""The table of routes."""

from functools import partial

from fastapi import FastAPI
from fastapi.routing import APIRoute

from server.api import probes
from server.api.account_pages import ACCOUNT_PAGES, create_persistent_token, get_account_page, log_in
from server.api.generation import generate_image
from server.api.upscale import upscale_image
from server.api.vibes import refuse_vibe


def install_routes(app: FastAPI) -> None:
    """Add all routes to an application whose `state.naiad` is an `AppState`."""
    get = app.get
    get("/")(probes.get_root)
    get("/live")(probes.get_live)
    get("/ready")(probes.get_ready)
    get("/models")(probes.get_models)
    get("/key")(probes.get_key)
    for page in ACCOUNT_PAGES:
        get(f"/user/{page}")(partial(get_account_page, page))
    app.post("/user/login")(log_in)
    app.post("/user/create-persistent-token")(create_persistent_token)
    app.post("/ai/generate-image")(generate_image)
    app.post("/ai/upscale")(upscale_image)
    app.post("/ai/encode-vibe")(refuse_vibe)


def answer_head(app: FastAPI) -> None:
    """Make every GET route answer HEAD too, by which monitors and proxies ask; the server leaves the body out."""
    for route in app.routes:
        if isinstance(route, APIRoute) and route.methods and "GET" in route.methods:
            route.methods.add("HEAD")
