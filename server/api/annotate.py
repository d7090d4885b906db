"""`POST /ai/annotate-image`: the maps that ControlNet is conditioned on, by NAI's names and by ControlNet's."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import Request
from fastapi.responses import Response
from pydantic import Field

from server.api.jobs import receive_body
from server.api.state import StateDependency
from server.api.tool_pictures import ToolRequest, answer_filter, open_tool_image
from server.director.toolbox import Toolbox
from server.errors import Rejected, shorten
from server.request.controls import ALIASES
from server.request.schema import LONGEST_NAME, Name, Real, WireModel, validate_body

ANNOTATORS = ("canny", "hed", "midas", "mlsd", "openpose", "uniformer", "fake_scribble", "normal")
A_THRESHOLD = "a number from 0 to 2040"
Threshold = Annotated[Real, Field(ge=0, le=2040)]  # the largest sum of two Sobel derivatives of 8-bit values


class AnnotateBody(WireModel):
    """The request body. Networks read no thresholds, not even that of `mlsd`."""

    model: Name = Field(description=f"a name of at most {LONGEST_NAME} characters")
    parameters: dict[str, object] = Field(description="an object")


class AnnotateParameters(WireModel):
    """`parameters`; the thresholds are Canny's."""

    image: object = None
    low_threshold: Threshold | None = Field(None, description=A_THRESHOLD)
    high_threshold: Threshold | None = Field(None, description=A_THRESHOLD)


async def annotate_image(request: Request, state: StateDependency) -> Response:
    """Draw the map of an annotator and return it in the forms that generated images have."""
    annotator, image, options = read_annotate(await receive_body(request, state), state.toolbox)
    rgb, source = await open_tool_image(request, image, "parameters.image")
    tool = ToolRequest(annotator, rgb, source, {"annotator": annotator, **options}, options)
    return await answer_filter(request, state, tool)


def read_annotate(body: Mapping[str, object], toolbox: Toolbox) -> tuple[str, object, dict[str, float]]:
    """Return a request's annotator, its image and the options of the filter; raise `Rejected` if it is not offered."""
    sent = validate_body(AnnotateBody, body)
    annotator = ALIASES.get(sent.model, sent.model)
    if annotator not in ANNOTATORS:
        raise Rejected("model", f"{shorten(sent.model)} is not one of {', '.join((*ANNOTATORS, *ALIASES))}")
    toolbox.check_offered(annotator, "model", sent.model)
    model = AnnotateParameters if annotator == "canny" else ImageOnly
    parameters = validate_body(model, sent.parameters, ("parameters",))
    if not parameters.image:
        raise Rejected("parameters.image", "is required: an image in Base64")
    if not isinstance(parameters, AnnotateParameters):
        return annotator, parameters.image, {}
    thresholds = {"low": parameters.low_threshold, "high": parameters.high_threshold}
    options = {name: float(value) for name, value in thresholds.items() if value is not None}
    return annotator, parameters.image, options


class ImageOnly(WireModel):
    """`parameters` of an annotator without options."""

    image: object = None
