"""`POST /ai/generate-image/request-price`: NAI's older page asks what a request costs. Here no request does."""

import asyncio
from collections.abc import Mapping
from typing import cast

from fastapi import Request

from server.api.body import read_body
from server.api.image_fields import IMAGE_LISTS, IMAGES, OBJECT_LISTS
from server.api.state import AppState, StateDependency, get_capacity, get_reservation
from server.errors import Rejected, shorten
from server.request.resolve import resolve
from server.request.schema import read_request

MOST_PROMPTS = 64
IMAGE_NAMES = {*IMAGES, *IMAGE_LISTS, *OBJECT_LISTS}


async def get_price(request: Request, state: StateDependency) -> dict[str, object]:
    """Return a price of 0 for each prompt; refuse a size, model or setting that generating would refuse."""
    body = await read_body(
        request, state.body_limits, get_reservation(request), get_capacity(request).parsing
    )
    prompts = await asyncio.to_thread(count_prompts, body, state)
    return {
        "requestEligibleForUnlimitedGeneration": True,
        "costPerPrompt": 0,
        "numPrompts": prompts,
        "freePrompts": prompts,
    }


def count_prompts(body: Mapping[str, object], state: AppState) -> int:
    """Check a request to generate, and return its number of prompts.

    The request is in `request`, or is the body itself. Images, `tier` and the prompts' texts are not read.

    Raises:
        Rejected: the request would be refused; the message names the field.
    """
    asked = _read_object(body.get("request", body), "request")
    given = _read_object(asked.get("parameters", {}), "parameters")
    parameters = {name: value for name, value in given.items() if name not in IMAGE_NAMES}
    sent = {"input": "", "model": asked.get("model"), "parameters": parameters}
    resolve(read_request(sent), state.current_policy())
    texts: object = asked.get("input", "")
    prompts = cast("list[object]", texts) if isinstance(texts, list) else [texts]
    if not 1 <= len(prompts) <= MOST_PROMPTS or not all(isinstance(prompt, str) for prompt in prompts):
        reason = f"is not a text or an array of 1 to {MOST_PROMPTS} texts"
        raise Rejected("input", f"{shorten(asked.get('input'))} {reason}")
    return len(prompts)


def _read_object(value: object, field: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise Rejected(field, f"{shorten(value)} is not an object")
    return cast("dict[str, object]", value)
