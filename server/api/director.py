"""`POST /ai/augment-image`: NAI's director tools, drawn by a filter, by a network of the catalog, or by the model."""

from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import Response
from PIL import Image
from pydantic import Field

from server.api.jobs import receive_body, run_in_slot, submit_job, wait_for_result
from server.api.memory import measure_work
from server.api.responses import build_warning_headers
from server.api.state import AppState, StateDependency, get_capacity, get_reservation
from server.api.tool_pictures import (
    ToolRequest,
    ToolResult,
    answer_drawings,
    answer_filter,
    open_tool_image,
)
from server.director.prompted_tools import Instructions, plan_redraw
from server.director.recipes import Recipes
from server.director.toolbox import Drawing, Toolbox
from server.errors import Rejected, shorten
from server.picture.derived import read_prompt
from server.request.schema import (
    A_SEED,
    A_TEXT,
    LONGEST_NAME,
    ImageFormat,
    Name,
    Text,
    Whole,
    WireModel,
    validate_body,
)

PROMPTLESS_TOOLS = ("bg-removal", "lineart", "sketch")
"""Tools that read no prompt; a filter or a network draws for them, the others are img2img of the model."""
NOT_OFFERED = {"pixel-snap": "is not offered: nothing is published about what NAI's tool does"}


class AugmentBody(WireModel):
    """The request body; `width` and `height` are the image's own."""

    req_type: Name = Field(description=f"a name of at most {LONGEST_NAME} characters")
    image: object = Field(None, description="an image in Base64")
    width: Whole | None = Field(None, description="a whole number")
    height: Whole | None = Field(None, description="a whole number")
    image_format: ImageFormat | None = Field(None, description="png or webp")
    prompt: object = Field(None, description="of prompted tools: a text; for emotion, a mood and `;;` first")
    defry: object = Field(None, description="of prompted tools: a whole number from 0 to 5")
    seed: object = Field(None, description="of prompted tools: a whole number")


class PromptFields(WireModel):
    """Fields that only prompted tools read; for other tools they are not validated."""

    prompt: Text | None = Field(None, description=A_TEXT)
    seed: Whole | None = Field(None, description=f"{A_SEED}; 0 means any")


@dataclass(frozen=True, slots=True)
class AugmentRequest:
    """A valid request. `instructions` is None if the tool is not a prompted one."""

    tool: str
    image: object
    recorded: Mapping[str, object]
    image_format: ImageFormat
    size: tuple[int | None, int | None]
    instructions: Instructions | None

    def warn_of_size(self, image: Image.Image) -> list[str]:
        """Return a warning if width or height are not the image's."""
        pairs = zip(("width", "height"), self.size, image.size, strict=True)
        wrong = [f"{name}: {sent}" for name, sent, own in pairs if sent not in (None, own)]
        return [f"{', '.join(wrong)}: the image has {image.width}x{image.height}"] if wrong else []


async def augment_image(request: Request, state: StateDependency) -> Response:
    """Make another picture of an image by a director tool."""
    sent = read_augment(await receive_body(request, state), state.toolbox)
    rgb, source = await open_tool_image(request, sent.image, "image")
    tool = ToolRequest(sent.tool, rgb, source, sent.recorded, image_format=sent.image_format)
    warnings = sent.warn_of_size(rgb)
    if sent.instructions is None:
        response = await answer_filter(request, state, tool)
    else:
        response, more = await answer_prompted(request, state, tool, sent.instructions)
        warnings += more
    response.headers.update(build_warning_headers(warnings))
    return response


async def answer_prompted(
    request: Request, state: AppState, tool: ToolRequest, instructions: Instructions
) -> tuple[Response, tuple[str, ...]]:
    """Let the model redraw an image, and return the response and warnings."""
    policy, slots, recipes = state.current_policy(), get_capacity(request).decoding, state.toolbox.recipes
    prompt = read_prompt(tool.source)
    plan = await run_in_slot(request, slots, plan_redraw, tool.rgb, instructions, prompt, recipes, policy)
    job = plan.resolved.job
    get_reservation(request).resize(measure_work(job) + plan.rgb.nbytes)
    result = await wait_for_result(submit_job(request, job), request)
    picture = await run_in_slot(request, slots, plan.finish, result.images[0])
    metadata = state.metadata_for(job.model)
    described = metadata.describe_job(job, result.sigmas)
    naiad = {**described, "tool": {"name": tool.name, "by": policy.model.id}}
    drawn = ToolResult([Drawing(picture)], naiad, result.run_seconds, job.passes[0].seeds[0])
    return await answer_drawings(request, state, tool, drawn, metadata), plan.resolved.warnings


def read_augment(body: Mapping[str, object], toolbox: Toolbox) -> AugmentRequest:
    """Return a request for a tool that this server has, or raise `Rejected`."""
    sent, recipes = validate_body(AugmentBody, body), toolbox.recipes
    tools = (*PROMPTLESS_TOOLS, *recipes.recipes)
    if sent.req_type in NOT_OFFERED:
        raise Rejected("req_type", f"{sent.req_type!r} {NOT_OFFERED[sent.req_type]}; use {', '.join(tools)}")
    if sent.req_type not in tools:
        raise Rejected("req_type", f"{shorten(sent.req_type)} is not one of {', '.join(tools)}")
    if not sent.image:
        raise Rejected("image", "is required: an image in Base64")
    if sent.req_type in PROMPTLESS_TOOLS:
        toolbox.check_offered(sent.req_type, "req_type", sent.req_type)
        instructions, recorded = None, {}
    else:
        instructions, recorded = _read_instructions(sent, body, recipes)
    return AugmentRequest(
        sent.req_type,
        sent.image,
        {"req_type": sent.req_type, **recorded},
        sent.image_format or "png",
        (sent.width, sent.height),
        instructions,
    )


def _read_instructions(
    sent: AugmentBody, body: Mapping[str, object], recipes: Recipes
) -> tuple[Instructions, dict[str, object]]:
    """Return the instructions for a prompted tool, and the keys that NAI's Comment records of them."""
    fields, level = validate_body(PromptFields, body), recipes.parse_level(sent.defry)
    prompt, seed = fields.prompt or "", fields.seed
    if recipes.recipes[sent.req_type].needs_mood:
        mood, extra = recipes.parse_mood(prompt)
        return Instructions(sent.req_type, extra, mood, level, seed), {"prompt": mood, "defry": level}
    instructions = Instructions(sent.req_type, prompt, "", level, seed)
    is_recorded = sent.req_type == "colorize"
    return instructions, {"prompt": prompt, "defry": level} if is_recorded else {}
