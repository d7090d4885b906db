"""The table of routes."""

from functools import partial

from fastapi import FastAPI
from fastapi.routing import APIRoute

from server.api import probes
from server.api.account_pages import (
    ACCOUNT_PAGES,
    create_persistent_token,
    get_account_page,
    get_objects,
    get_trial_status,
    log_in,
    put_client_settings,
)
from server.api.annotate import annotate_image
from server.api.archive import delete_picture, get_picture, list_pictures
from server.api.director import augment_image
from server.api.generation import generate_image
from server.api.job_list import cancel_job, list_jobs
from server.api.openai import create_images, get_model, list_models
from server.api.price import get_price
from server.api.stream import generate_image_stream
from server.api.tags import suggest_tags
from server.api.upscale import upscale_image
from server.api.vibes import encode_vibe


def install_routes(app: FastAPI) -> None:
    """Add all routes to an application whose `state.naiad` is an `AppState`."""
    get = app.get
    get("/")(probes.get_root)
    get("/live")(probes.get_live)
    get("/ready")(probes.get_ready)
    get("/metrics")(probes.get_metrics)
    get("/models")(probes.get_models)
    get("/key")(probes.get_key)
    get("/queue")(list_jobs)
    app.delete("/queue/{id}")(cancel_job)
    for page in ACCOUNT_PAGES:
        get(f"/user/{page}")(partial(get_account_page, page))
    get("/user/objects/{kind}")(get_objects)
    app.put("/user/clientsettings")(put_client_settings)
    app.post("/user/login")(log_in)
    app.post("/user/create-persistent-token")(create_persistent_token)
    get("/ai/trial-status")(get_trial_status)
    app.post("/ai/generate-image")(generate_image)
    app.post("/ai/generate-image/request-price")(get_price)
    app.post("/ai/generate-image-stream")(generate_image_stream)
    get("/ai/generate-image/suggest-tags")(suggest_tags)
    app.post("/ai/upscale")(upscale_image)
    app.post("/ai/augment-image")(augment_image)
    app.post("/ai/annotate-image")(annotate_image)
    app.post("/ai/encode-vibe")(encode_vibe)
    get("/archive")(list_pictures)
    get("/archive/{id}")(get_picture)
    app.delete("/archive/{id}", status_code=204)(delete_picture)
    app.post("/v1/images/generations")(create_images)
    get("/v1/models")(list_models)
    get("/v1/models/{model}")(get_model)


def answer_head(app: FastAPI) -> None:
    """Make every GET route answer HEAD too, by which monitors and proxies ask; the server leaves the body out."""
    for route in app.routes:
        if isinstance(route, APIRoute) and route.methods and "GET" in route.methods:
            route.methods.add("HEAD")
