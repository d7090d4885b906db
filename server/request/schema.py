"""The request as clients send it: names, types and bounds that depend on no model, and nothing else.

Tolerant where real clients differ: unknown keys are ignored, numbers and booleans may be strings (sizes may not),
`action` may be missing, and None everywhere means that the server decides. A task's fields are validated only for that
task; in other requests they may hold anything. A field's description is what the error message says is allowed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from server.errors import Rejected
from server.picture.comment import strip_unwritable
from server.request.rejection import to_rejection
from server.request.unoffered import refuse_unoffered, warn_of_unoffered

LARGEST_AREA = 3_145_728
LONGEST_TEXT = 40_000
LONGEST_NAME = 200
MOST_STEPS = 50
MOST_SAMPLES = 8
ImageFormat = Literal["png", "webp"]


def clean_text(value: object) -> object:
    """Remove from a text what cannot be written to a file; return anything else, or a text that is too long, unchanged.

    To search megabytes that are refused anyway would hold up all other threads.
    """
    return strip_unwritable(value) if isinstance(value, str) and len(value) <= LONGEST_TEXT else value


def _refuse_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a boolean is not a number")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def to_number(value: object) -> float | None:
    """Return a number, which may be sent as a text; None for what is none. It may be infinite or NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (OverflowError, ValueError):
        return None


def _false_to_none(value: object) -> object:
    return None if value is False else value


Task = Literal["generate", "img2img", "infill"]
Text = Annotated[str, BeforeValidator(clean_text), Field(max_length=LONGEST_TEXT)]
Whole = Annotated[int, BeforeValidator(_refuse_boolean)]
Real = Annotated[float, BeforeValidator(_refuse_boolean), Field(allow_inf_nan=False)]
Share = Annotated[Real, Field(ge=0, le=1)]
Name = Annotated[str, Field(max_length=LONGEST_NAME)]
Flag = bool | None
Model = TypeVar("Model", bound=BaseModel)
Side = Annotated[
    int, BeforeValidator(_refuse_boolean), Field(strict=True, ge=64, multiple_of=32, le=LARGEST_AREA // 64)
]

A_SIDE = f"a multiple of 32 from 64 to {LARGEST_AREA // 64}"
A_TEXT = f"a text of at most {LONGEST_TEXT} characters"
A_FLAG = "true or false"
A_NAME = f"a name of at most {LONGEST_NAME} characters"
A_SHARE = "a number from 0 to 1"
A_STRENGTH = "a number from -2 to 2"
Strength = Annotated[Real, Field(ge=-2, le=2, description=A_STRENGTH)]
A_SEED = "a whole number, taken modulo 2^32"


class WireModel(BaseModel):
    """Base of the models of request bodies: frozen, ignoring unknown keys."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Parameters(WireModel):
    """The part of `parameters` that every task reads."""

    width: Side | None = Field(None, description=A_SIDE)
    height: Side | None = Field(None, description=A_SIDE)
    steps: Annotated[Whole, Field(ge=1, le=MOST_STEPS)] | None = Field(
        None, description=f"a whole number from 1 to {MOST_STEPS}"
    )
    scale: Annotated[Real, Field(ge=0, le=50)] | None = Field(None, description="a number from 0 to 50")
    sampler: Name | None = Field(None, description=A_NAME)
    noise_schedule: Name | None = Field(None, description=A_NAME)
    seed: Whole | None = Field(None, description=f"{A_SEED}; 0 means any")
    n_samples: Annotated[Whole, Field(ge=1, le=MOST_SAMPLES)] | None = Field(
        None, description=f"a whole number from 1 to {MOST_SAMPLES}, fewer for large pictures"
    )
    prompt: Text | None = Field(None, description=A_TEXT)
    negative_prompt: Text | None = Field(None, description=A_TEXT)
    uc: Text | None = Field(None, description=A_TEXT)
    cfg_rescale: Share | None = Field(None, description=A_SHARE)
    uncond_scale: Annotated[Real, Field(ge=0, le=10)] | None = Field(
        None, description="a number from 0 to 10"
    )
    uncond_zero: Annotated[Real, Field(ge=0, le=10)] | None = Field(None, description="a number from 0 to 10")
    uncond_zero_sharpness: Annotated[Real, Field(ge=0, le=2)] | None = Field(
        None, description="a number from 0 to 2"
    )
    dynamic_thresholding: Flag = Field(None, description=A_FLAG)
    sm: Flag = Field(None, description=A_FLAG)
    sm_dyn: Flag = Field(None, description=A_FLAG)
    skip_cfg_above_sigma: Real | None = Field(None, description="a number, or null")
    skip_cfg_below_sigma: Real | None = Field(None, description="a number, or null")
    deep_shrink: Flag = Field(None, description=A_FLAG)
    prefer_brownian: Flag = Field(None, description=A_FLAG)
    deliberate_euler_ancestral_bug: Flag = Field(None, description=A_FLAG)
    legacy: Flag = Field(None, description=A_FLAG)
    legacy_v3_extend: Flag = Field(None, description=A_FLAG)
    image_format: ImageFormat | None = Field(None, description="png or webp")

    dialect: Flag = Field(None, description=A_FLAG)

    loras: object = Field(None, description="an array of names and strengths")
    stream: object = None  # only streaming reads it; other endpoints are sent anything here
    auto_smea: object = Field(None, alias="autoSmea")
    auto_smea_too: object = Field(None, alias="auto_smea")
    quality_toggle: object = Field(None, alias="qualityToggle")
    uc_preset: object = Field(None, alias="ucPreset")
    quality_id: object = Field(None, alias="qualityPresetId")
    uc_id: object = Field(None, alias="ucPresetId")
    v4_prompt: object = None
    v4_negative_prompt: object = None
    image: object = None
    mask: object = None
    reference_image: object = None  # these and their values are read by request/vibes.py
    reference_image_multiple: object = None
    reference_image_multiple_cached: object = None
    reference_strength: object = None
    reference_strength_multiple: object = None
    reference_information_extracted: object = None
    reference_information_extracted_multiple: object = None
    normalize_reference_strength_multiple: object = None
    controlnet_condition: object = None  # these are read by request/controls.py
    controlnet_model: object = None
    controlnet_strength: object = None
    controls: object = Field(None, description="an array of control maps")


class EnhanceParameters(WireModel):
    """`parameters.enhance`, an extension of this server: a second pass in the same request."""

    scale: Annotated[Real, Field(gt=0, le=4)] | None = Field(None, description="a number above 0, at most 4")
    magnitude: Annotated[Whole, Field(ge=1, le=5)] | None = Field(
        None, description="a whole number from 1 to 5"
    )
    strength: Share | None = Field(None, description=A_SHARE)
    noise: Share | None = Field(None, description=A_SHARE)
    seed: Whole | None = Field(None, description=f"{A_SEED}; 0 means any")
    upscaler: Literal["lanczos", "network"] | None = Field(None, description="lanczos or network")


class GenerateParameters(Parameters):
    """`parameters` of `generate`: text to image."""

    enhance: Annotated[EnhanceParameters | None, BeforeValidator(_false_to_none)] = Field(
        None, description="an object"
    )


class NestedParameters(WireModel):
    """`parameters.img2img`, where newer clients repeat the fields of an init image, or send them alone for infill."""

    strength: Share | None = Field(None, description=A_SHARE)
    noise: Share | None = Field(None, description=A_SHARE)
    extra_noise_seed: Whole | None = Field(None, description=A_SEED)
    color_correct: Flag = Field(None, description=A_FLAG)


class ImageParameters(Parameters):
    """What `img2img` and `infill` have in common. A field here takes precedence over the same one in `img2img`."""

    color_correct: Flag = Field(None, description=A_FLAG)
    img2img: Annotated[NestedParameters | None, BeforeValidator(_false_to_none)] = Field(
        None, description="an object"
    )
    enhance: object = None

    @property
    def nested(self) -> NestedParameters:
        """The fields in `img2img`; all None if it was not sent."""
        return self.img2img or NestedParameters.model_validate({})


class Img2ImgParameters(ImageParameters):
    """`parameters` of `img2img`."""

    strength: Share | None = Field(None, description=A_SHARE)
    noise: Share | None = Field(None, description=A_SHARE)
    extra_noise_seed: Whole | None = Field(None, description=A_SEED)


class InfillParameters(ImageParameters):
    """`parameters` of `infill`; its strength has a name of its own, as `strength` is sent without being meant."""

    strength: Annotated[Real, Field(gt=0, le=1)] | None = Field(
        None, alias="inpaintImg2ImgStrength", description="a number above 0, at most 1"
    )
    add_original_image: Flag = Field(None, description=A_FLAG)
    overlay: Literal["soft", "hard", "none"] | None = Field(None, description="soft, hard or none")
    soft_mask: Flag = Field(None, description=A_FLAG)


class GenerateBody(WireModel):
    """The body of `POST /ai/generate-image`, its `parameters` not yet validated."""

    input: Text | None = Field(None, description=A_TEXT)
    model: Name | None = Field(None, description=f"a model id of at most {LONGEST_NAME} characters")
    action: Task | None = Field(None, description="generate, img2img or infill")
    parameters: dict[str, object] = Field(description="an object")


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A valid request; the class of `parameters` is the task's, and `warnings` are for the client."""

    task: Task
    parameters: GenerateParameters | Img2ImgParameters | InfillParameters
    input: str | None = None
    model: str | None = None
    warnings: tuple[str, ...] = ()


def read_request(body: Mapping[str, object]) -> GenerateRequest:
    """Validate a body.

    Raises:
        Rejected: a field is missing or not allowed, or the task's images are; the message names it.
    """
    sent = validate_body(GenerateBody, body)
    task = _find_task(sent.action, sent.parameters)
    parameters = validate_body(PARAMETERS[task], sent.parameters, ("parameters",))
    refuse_unoffered(sent.parameters)
    if task == "infill" and not (parameters.image and parameters.mask):
        raise Rejected("parameters.mask", "infill needs an image and a mask")
    if task == "img2img" and not parameters.image:
        raise Rejected("parameters.image", "img2img needs an image")
    if isinstance(parameters, ImageParameters) and not (
        parameters.enhance is None or parameters.enhance is False
    ):
        raise Rejected("parameters.enhance", f"works with generate only, not with {task}")
    warnings = warn_of_unoffered(sent.parameters, task)
    return GenerateRequest(task, parameters, sent.input, sent.model, warnings)


PARAMETERS: Mapping[Task, type[GenerateParameters | Img2ImgParameters | InfillParameters]] = {
    "generate": GenerateParameters,
    "img2img": Img2ImgParameters,
    "infill": InfillParameters,
}


def _find_task(action: Task | None, parameters: Mapping[str, object]) -> Task:
    """The task of a request: without an action, or for "generate", the images that were sent decide."""
    if action in ("img2img", "infill"):
        return action
    if not parameters.get("image"):
        return "generate"
    return "infill" if action is None and parameters.get("mask") else "img2img"


def validate_body(model: type[Model], body: Mapping[str, object], prefix: tuple[str, ...] = ()) -> Model:
    """Validate a body, or a section of one; `prefix` are the fields around the section, for error messages.

    Raises:
        Rejected: a field is missing or not allowed; the message names it.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise to_rejection(error, model, prefix) from None
