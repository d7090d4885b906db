"""The table of routes."""

from functools import partial

from fastapi import FastAPI

from server.api import probes
from server.api.account_pages import ACCOUNT_PAGES, create_persistent_token, get_account_page, log_in
from server.api.generation import generate_image
from server.api.tags import suggest_tags
from server.api.upscale import upscale_image


def install_routes(app: FastAPI) -> None:
    """Add all routes to an application whose `state.naiad` is an `AppState`."""
    get = partial(app.api_route, methods=["GET", "HEAD"])  # monitors and proxies ask by HEAD
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
    get("/ai/generate-image/suggest-tags")(suggest_tags)
    app.post("/ai/upscale")(upscale_image)
