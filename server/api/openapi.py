"""The OpenAPI document, and a page that shows it, on loopback only.

FastAPI knows the routes but not the bodies, which are read by hand; their schemas come from the models that read them.
The page is Swagger UI, from a package: nothing is loaded from the internet.
"""

from collections.abc import Mapping
from copy import copy
from functools import cache, partial
from importlib.resources import files
from inspect import getdoc
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.api.access import PROTECTED_PATHS, AccessRules, needs_token
from server.api.annotate import AnnotateBody, AnnotateParameters
from server.api.archive import ArchiveQuery
from server.api.director import AugmentBody
from server.api.examples import build_examples
from server.api.openai import ImagesRequest
from server.api.upscale import UpscaleRequest
from server.api.vibes import MEDIA_TYPE, EncodeVibeBody
from server.errors import NotFound
from server.picture.comment import naiad_version
from server.request.schema import PARAMETERS, GenerateBody

Schema = dict[str, Any]
REF = "#/components/schemas/{model}"
DESCRIPTION = (
    "The API of NovelAI's image generation as this server speaks it. docs/api.md says what each field means. "
    "Where a number is wanted, a text that holds one is read too; unknown fields are ignored."
)
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>naiad API</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
<div id="docs"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</html>
"""
START = 'SwaggerUIBundle({url: "/openapi.json", dom_id: "#docs", validatorUrl: null, deepLinking: true});\n'
ASSETS = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "start.js": "text/javascript",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""For the page: it runs the scripts of this server only, and reaches this server only."""
BODIES: Mapping[str, type[BaseModel] | None] = {
    "/ai/generate-image": GenerateBody,
    "/ai/generate-image-stream": GenerateBody,
    "/ai/generate-image/request-price": None,
    "/ai/upscale": UpscaleRequest,
    "/ai/augment-image": AugmentBody,
    "/ai/annotate-image": AnnotateBody,
    "/ai/encode-vibe": EncodeVibeBody,
    "/user/login": None,
    "/user/clientsettings": None,
    "/v1/images/generations": ImagesRequest,
}
"""The model that reads the body of each path; None for an object with the fields of its example."""
TAGS = {"/ai/": "images", "/archive": "archive", "/user/": "account", "/v1/": "OpenAI"}
PARTS = ("image", "mask")
BINARY: Schema = {"type": "string", "format": "binary"}
IMAGES: Schema = {
    "image/png": {"schema": BINARY},
    "binary/octet-stream": {"schema": BINARY},
    "application/x-zip-compressed": {"schema": BINARY},
    "application/json": {"schema": {"type": "object"}},
}
"""What a path that makes images answers with, by `Accept`."""
FRAMES: Schema = {
    "application/msgpack": {"schema": BINARY},
    "text/event-stream": {},
}
RESPONSES: Mapping[str, Schema] = {
    "/ai/generate-image": IMAGES,
    "/ai/generate-image-stream": FRAMES,
    "/ai/upscale": IMAGES,
    "/ai/augment-image": IMAGES,
    "/ai/annotate-image": IMAGES,
    "/ai/encode-vibe": {MEDIA_TYPE: {"schema": BINARY}},
    "/archive/{id}": {"image/png": {"schema": BINARY}, "image/webp": {"schema": BINARY}},
}
"""The content of each path's response that is not JSON alone."""
ERROR: Schema = {
    "type": "object",
    "required": ["statusCode", "message"],
    "properties": {
        "statusCode": {"type": "integer"},
        "message": {"type": "string"},
        "details": {
            "type": "object",
            "properties": {"invalidKeys": {"type": "array", "items": {"type": "string"}}},
        },
    },
    "additionalProperties": False,
}
OPENAI_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def install_docs(app: FastAPI, rules: AccessRules) -> None:
    """Add the document and the page to an application that listens on loopback only; call it after other routes."""
    if any(map(needs_token, rules.bound)):
        return
    build = cache(partial(build_document, app))

    async def get_document() -> JSONResponse:
        """This document."""
        return JSONResponse(build(), headers=HEADERS)

    app.get("/openapi.json", include_in_schema=False)(get_document)
    app.get("/docs", include_in_schema=False)(get_page)
    app.get("/docs/{name}", include_in_schema=False)(get_asset)


async def get_page() -> HTMLResponse:
    """The page that shows the document."""
    return HTMLResponse(PAGE, headers=HEADERS)


async def get_asset(name: str) -> Response:
    """A file that the page loads: one of Swagger UI's, or the script that starts it."""
    if name not in ASSETS:
        raise NotFound(f"/docs/{name[:80]}: no such file")
    resources = files("fastapi_swagger") / "resources"
    content = START if name == "start.js" else (resources / name).read_bytes()
    return Response(content, media_type=ASSETS[name], headers=HEADERS | {"Cache-Control": "max-age=86400"})


def build_document(app: FastAPI) -> Schema:
    """Return the OpenAPI document of an application's routes."""
    routes = [_prepare(route) for route in app.routes if isinstance(route, APIRoute)]
    document = get_openapi(title="naiad", version=naiad_version(), description=DESCRIPTION, routes=routes)
    document["components"] = {
        "schemas": _build_schemas() | {"Error": ERROR, "OpenAIError": OPENAI_ERROR},
        "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete(path, method, operation)
    return document


def _prepare(route: APIRoute) -> APIRoute:
    """Return a copy of a route without HEAD, which every GET has, and with the docstring of its own function."""
    shown = copy(route)
    shown.description = getdoc(getattr(route.endpoint, "func", route.endpoint)) or ""
    shown.methods = {method for method in route.methods or () if method != "HEAD"}
    return shown


def _build_schemas() -> Schema:
    """Return the schemas of all bodies, with those of the tasks' `parameters` in place of an untyped object."""
    models = {model for model in BODIES.values() if model is not None} | {
        *PARAMETERS.values(),
        AnnotateParameters,
    }
    ordered = sorted(models, key=lambda model: model.__name__)
    _, document = models_json_schema([(model, "validation") for model in ordered], ref_template=REF)
    schemas: Schema = document["$defs"]
    references = [{"$ref": REF.format(model=model.__name__)} for model in PARAMETERS.values()]
    schemas[GenerateBody.__name__]["properties"]["parameters"] = {"anyOf": references}
    annotate = {"$ref": REF.format(model=AnnotateParameters.__name__)}
    schemas[AnnotateBody.__name__]["properties"]["parameters"] = annotate
    return schemas


def _complete(path: str, method: str, operation: Schema) -> None:
    """Add to an operation the body, the responses and the token that FastAPI does not know of."""
    operation["tags"] = [next((tag for prefix, tag in TAGS.items() if path.startswith(prefix)), "server")]
    operation["summary"] = operation.get("description", "").partition(". ")[0].partition("\n")[0].rstrip(".")
    error = "OpenAIError" if path.startswith("/v1/") else "Error"
    responses = operation["responses"]
    responses.pop("422", None)  # FastAPI's own form, which is never sent
    content = {"application/json": {"schema": {"$ref": REF.format(model=error)}}}
    responses["default"] = {
        "description": "An error; its message names the field and what is allowed",
        "content": content,
    }
    if path.startswith(PROTECTED_PATHS) and path != "/user/login":
        operation["security"] = [{"token": []}, {}]  # without a token set, none is needed
    if path in BODIES and method in ("post", "put"):
        operation["requestBody"] = _build_request_body(path)
    if path.startswith("/user/") and method == "post":
        responses["201"] = responses.pop("200", {"description": "A token"})
    if path == "/archive":
        operation["parameters"] = _list_query_parameters(ArchiveQuery)
    if path in RESPONSES and method != "delete":
        responses["200"] = {"description": "What `Accept` asks for", "content": RESPONSES[path]}


def _list_query_parameters(model: type[BaseModel]) -> list[Schema]:
    """Return the fields of a query as the document has them."""
    properties: Schema = model.model_json_schema()["properties"]
    return [{"name": name, "in": "query", "schema": properties[name]} for name in properties]


def _build_request_body(path: str) -> Schema:
    model, examples = BODIES[path], build_examples().get(path, {})
    schema: Schema = {
        "type": "object",
        "properties": {name: {} for example in examples.values() for name in example},
    }
    if model is not None:
        schema = {"$ref": REF.format(model=model.__name__)}
    shown = {name: {"value": example} for name, example in examples.items()}
    content: Schema = {"application/json": {"schema": schema, "examples": shown}}
    if path in RESPONSES:
        parts: Schema = {"request": schema} | dict.fromkeys(PARTS, BINARY)
        form: Schema = {"type": "object", "required": ["request"], "properties": parts}
        content["multipart/form-data"] = {
            "schema": form,
            "encoding": {"request": {"contentType": "application/json"}},
        }
    return {"required": True, "content": content}
