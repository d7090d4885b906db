"""`POST /ai/augment-image`: NAI's director tools."""

from collections.abc import Mapping
from typing import Literal

from fastapi import Request
from fastapi.responses import Response
from pydantic import Field

from server.api.drawings import ToolTask, answer_task, open_tool_image
from server.api.jobs import receive_body
from server.api.state import StateDependency
from server.director.toolbox import Toolbox
from server.errors import Rejected, shorten
from server.request.schema import (
    LONGEST_NAME,
    Name,
    Whole,
    WireModel,
    validate_body,
)

TOOLS = ("bg-removal", "lineart", "sketch")


class AugmentRequest(WireModel):
    """The request body; `width` and `height` are the image's own."""

    req_type: Name = Field(description=f"a name of at most {LONGEST_NAME} characters")
    image: object = None
    width: Whole | None = Field(None, description="a whole number")
    height: Whole | None = Field(None, description="a whole number")
    image_format: Literal["png", "webp"] | None = Field(None, description="png or webp")


async def augment_image(request: Request, state: StateDependency) -> Response:
    """Make another picture of an image by a director tool."""
    sent = read_augment(await receive_body(request, state), state.toolbox)
    rgb, source = await open_tool_image(request, sent.image, "image")
    recorded = {"req_type": sent.req_type}
    task = ToolTask(sent.req_type, rgb, source, recorded, image_format=sent.image_format or "png")
    return await answer_task(request, state, task)


def read_augment(body: Mapping[str, object], toolbox: Toolbox) -> AugmentRequest:
    """Return a request for a tool that this server has, or raise `Rejected`."""
    sent = validate_body(AugmentRequest, body)
    if sent.req_type not in TOOLS:
        raise Rejected("req_type", f"{shorten(sent.req_type)} is not one of {', '.join(TOOLS)}")
    if not sent.image:
        raise Rejected("image", "is required: an image in Base64")
    toolbox.require(sent.req_type, "req_type", sent.req_type)
    return sent
