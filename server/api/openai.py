"""OpenAI's image API, for gateways: `POST /v1/images/generations` and `GET /v1/models`.

A request is translated to NAI's and takes the same path from there. Errors under `/v1/` have OpenAI's form, see
`error_responses.ErrorResponse`.
"""

from base64 import b64encode
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import hypot, log
from time import time
from typing import Annotated, Any, Literal

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field

from server.api.generation import resolve_generate, run_and_encode
from server.api.jobs import receive_body
from server.api.responses import build_warning_headers
from server.api.state import StateDependency
from server.api.threads import call_in_thread
from server.errors import NotFound, Rejected, shorten
from server.request.resolve import ResolvedRequest
from server.request.schema import (
    LONGEST_NAME,
    MOST_SAMPLES,
    ImageFormat,
    Name,
    Text,
    Whole,
    WireModel,
    read_request,
    validate_body,
)

SIZES = (
    *((512, 768), (768, 512), (640, 640)),
    *((832, 1216), (1216, 832), (1024, 1024)),
    *((1024, 1536), (1536, 1024), (1472, 1472)),
    *((1088, 1920), (1920, 1088)),
)
"""The sizes that NAI's page offers; all models are used with these."""
PASSED_ON = ("negative_prompt", "seed", "steps", "scale", "sampler", "noise_schedule", "cfg_rescale")
"""Extensions: fields of NAI's `parameters` under their own names."""
WITHOUT_EFFECT = {"user", "safety_identifier"}
"""Fields that are for the provider alone; the client loses nothing."""
NEUTRAL = {"quality": ("auto", "standard"), "moderation": ("auto",), "output_compression": (100,)}
"""Values that ask for what happens anyway."""
MOST_WARNINGS = 16


class ImagesRequest(WireModel):
    """The request body. Fields that are not here have no effect, which a warning says."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    prompt: Annotated[Text, Field(min_length=1)] = Field(description="a text of 1 to 40000 characters")
    model: Name | None = Field(None, description=f"a name of at most {LONGEST_NAME} characters")
    n: Annotated[Whole, Field(ge=1, le=MOST_SAMPLES)] | None = Field(
        None, description=f"a whole number from 1 to {MOST_SAMPLES}"
    )
    size: Annotated[str, Field(pattern=r"^(auto|[1-9]\d{1,4}x[1-9]\d{1,4})$")] | None = Field(
        None,
        description='"auto" or two sides of 10 to 99999 pixels like "1024x1024"; the nearest size of NAI is used',
    )
    response_format: Literal["b64_json"] | None = Field(
        None, description="b64_json; this server keeps no files that a URL could name"
    )
    background: Literal["auto", "opaque"] | None = Field(None, description="auto or opaque")
    output_format: ImageFormat | None = Field(None, description="png or webp")
    stream: Literal[False] | None = Field(None, description="false; this path does not stream")
    partial_images: Literal[0] | None = Field(None, description="0; this path does not stream")


@dataclass(frozen=True, slots=True)
class Translation:
    """A request in NAI's form, and warnings about what was substituted or has no effect."""

    body: Mapping[str, object]
    warnings: tuple[str, ...]


async def create_images(request: Request, state: StateDependency) -> JSONResponse:
    """Generate images from a prompt and return them in Base64."""
    translation = translate(await receive_body(request, state))
    with rename_fields():
        resolved = await resolve_generate(request, state, read_request(translation.body))
    generated = await run_and_encode(request, state, resolved)
    response = await call_in_thread(build_response, generated.files, generated.resolved)
    renamed = (warning.replace("input:", "prompt:", 1) for warning in resolved.warnings)
    response.headers.update(build_warning_headers([*translation.warnings, *renamed]))
    return response


def translate(body: Mapping[str, object]) -> Translation:
    """Return a request to generate images in NAI's form, or raise `Rejected`."""
    sent = validate_body(ImagesRequest, body)
    extra = sent.model_extra or {}
    parameters: dict[str, object] = {name: extra[name] for name in PASSED_ON if extra.get(name) is not None}
    parameters |= {"n_samples": sent.n or 1, "image_format": sent.output_format or "png"}
    parameters |= {"qualityToggle": True, "ucPreset": 0}  # as NAI's page sends them for a new user
    warnings: list[str] = []
    if sent.size not in (None, "auto"):
        width, height = find_nearest_size(sent.size)
        parameters |= {"width": width, "height": height}
        if sent.size != f"{width}x{height}":
            warnings.append(f"size: {sent.size} is answered by {width}x{height}")
    nai_body: dict[str, object] = {"input": sent.prompt, "action": "generate", "parameters": parameters}
    if sent.model is not None and sent.model.startswith("nai-"):
        nai_body["model"] = sent.model
    return Translation(nai_body, (*warnings, *_warn_of_extra(extra)))


def _warn_of_extra(extra: Mapping[str, Any]) -> Iterator[str]:
    """Yield a warning for each field that has no effect, unless its value asks for none."""
    known = {*PASSED_ON, *WITHOUT_EFFECT}
    sent = [(name, value) for name, value in extra.items() if value is not None and name not in known]
    for name, value in sent[:MOST_WARNINGS]:
        if value not in NEUTRAL.get(name, ()):
            yield f"{shorten(name)[1:-1]}: {shorten(value)} has no effect here"


def find_nearest_size(size: str) -> tuple[int, int]:
    """Return the size of NAI's whose sides are nearest to those of a size like "1024x1024", by ratio."""
    width, height = (int(side) for side in size.split("x"))
    return min(SIZES, key=lambda nai: hypot(log(nai[0] / width), log(nai[1] / height)))


@contextmanager
def rename_fields() -> Generator[None]:
    """Make a `Rejected` that is raised inside name the field as this API does."""
    names = {
        "input": "prompt",
        "parameters.n_samples": "n",
        "parameters.width": "size",
        "parameters.height": "size",
    }
    try:
        yield
    except Rejected as error:
        name = names.get(error.field, error.field.removeprefix("parameters."))
        raise Rejected(name, error.reason) from None


def build_response(images: list[bytes], resolved: ResolvedRequest) -> JSONResponse:
    """Return images in OpenAI's form; `revised_prompt` is the prompt as it was encoded."""
    job, prompt = resolved.job, resolved.job.prompts.positive
    data = [{"b64_json": b64encode(image).decode(), "revised_prompt": prompt} for image in images]
    last = job.passes[-1]
    return JSONResponse(
        {
            "created": int(time()),
            "data": data,
            "background": "opaque",
            "output_format": resolved.image_format,
            "size": f"{last.width}x{last.height}",
        }
    )


async def list_models(state: StateDependency) -> dict[str, object]:
    """The ids of the models. Any other model is answered by it too."""
    return {"object": "list", "data": [_describe_model(name) for name in state.policy.ids]}


async def get_model(model: str, state: StateDependency) -> dict[str, object]:
    """One of the models' ids."""
    if model not in state.policy.ids:
        raise NotFound(f"model: {shorten(model)} is not served; served: {', '.join(state.policy.ids)}")
    return _describe_model(model)


def _describe_model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "naiad"}
