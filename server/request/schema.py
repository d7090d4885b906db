"""The request as clients send it: names, types and bounds that depend on no model, and nothing else.

Tolerant where real clients differ: unknown keys are ignored, numbers and booleans may come as strings (sizes may
not), `action` may be missing, and None everywhere means that the server decides. Fields that this kind of request
does not use are not looked at, so their values can be anything. Each field's description is what a client is told
to be allowed when its value is not.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from server.errors import to_rejection
from server.picture.comment import strip_unwritable

LARGEST_AREA = 3_145_728
LONGEST_TEXT = 40_000
LONGEST_NAME = 200
MOST_STEPS = 50
MOST_SAMPLES = 8


def clean_text(value: object) -> object:
    """A text without what no file can hold; anything else as it is."""
    return strip_unwritable(value) if isinstance(value, str) else value


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a boolean is no number")
    return int(value) if isinstance(value, float) and value.is_integer() else value


Text = Annotated[str, BeforeValidator(clean_text), Field(max_length=LONGEST_TEXT)]
Whole = Annotated[int, BeforeValidator(_no_boolean)]
Real = Annotated[float, BeforeValidator(_no_boolean), Field(allow_inf_nan=False)]
Name = Annotated[str, Field(max_length=LONGEST_NAME)]
Flag = bool | None
Request = TypeVar("Request", bound=BaseModel)
Side = Annotated[int, Field(strict=True, ge=64, multiple_of=32, le=LARGEST_AREA // 64)]

A_SIDE = f"a whole number, a multiple of 32, from 64 to {LARGEST_AREA // 64}"
A_TEXT = f"a text of at most {LONGEST_TEXT} characters"
A_FLAG = "true or false"
A_NAME = f"a name of at most {LONGEST_NAME} characters"


class WireModel(BaseModel):
    """What the two halves of a request have in common: frozen, and deaf to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Parameters(WireModel):
    """`parameters`, as every kind of request has them; what only some look at is not looked at here."""

    width: Side | None = Field(None, description=A_SIDE)
    height: Side | None = Field(None, description=A_SIDE)
    steps: Annotated[Whole, Field(ge=1, le=MOST_STEPS)] | None = Field(
        None, description=f"a whole number from 1 to {MOST_STEPS}"
    )
    scale: Annotated[Real, Field(ge=0, le=50)] | None = Field(None, description="a number from 0 to 50")
    sampler: Name | None = Field(None, description=A_NAME)
    noise_schedule: Name | None = Field(None, description=A_NAME)
    seed: Whole | None = Field(None, description="a whole number, taken modulo 2^32; 0 means any")
    n_samples: Annotated[Whole, Field(ge=1, le=MOST_SAMPLES)] | None = Field(
        None, description=f"a whole number from 1 to {MOST_SAMPLES}, fewer for large pictures"
    )
    prompt: Text | None = Field(None, description=A_TEXT)
    negative_prompt: Text | None = Field(None, description=A_TEXT)
    uc: Text | None = Field(None, description=A_TEXT)
    cfg_rescale: Annotated[Real, Field(ge=0, le=1)] | None = Field(None, description="a number from 0 to 1")
    uncond_scale: Annotated[Real, Field(ge=0, le=10)] | None = Field(
        None, description="a number from 0 to 10"
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
    image_format: Literal["png", "webp"] | None = Field(None, description="png or webp")

    auto_smea: object = Field(None, alias="autoSmea")
    auto_smea_too: object = Field(None, alias="auto_smea")
    quality_toggle: object = Field(None, alias="qualityToggle")
    uc_preset: object = Field(None, alias="ucPreset")
    v4_prompt: object = None
    v4_negative_prompt: object = None
    image: object = None
    mask: object = None
    strength: object = None
    noise: object = None
    extra_noise_seed: object = None
    inpaint_strength: object = Field(None, alias="inpaintImg2ImgStrength")
    add_original_image: object = None
    overlay: object = None
    color_correct: object = None
    soft_mask: object = None
    enhance: object = None
    reference_image: object = None
    reference_image_multiple: object = None


class Starting(WireModel):
    """What `parameters` say of a picture that img2img starts from."""

    strength: Annotated[Real, Field(ge=0, le=1)] | None = Field(None, description="a number from 0 to 1")
    noise: Annotated[Real, Field(ge=0, le=1)] | None = Field(None, description="a number from 0 to 1")
    extra_noise_seed: Whole | None = Field(None, description="a whole number, taken modulo 2^32")
    color_correct: Flag = Field(None, description=A_FLAG)


class StartingRequest(WireModel):
    """A body as far as Starting goes."""

    parameters: Starting = Field(description="an object")


class Infilling(WireModel):
    """What they say of one that infill draws into."""

    strength: Annotated[Real, Field(gt=0, le=1)] | None = Field(
        None, alias="inpaintImg2ImgStrength", description="a number above 0, at most 1"
    )
    add_original_image: Flag = Field(None, description=A_FLAG)
    overlay: Literal["soft", "hard", "none"] | None = Field(None, description="soft, hard or none")
    color_correct: Flag = Field(None, description=A_FLAG)
    soft_mask: Flag = Field(None, description=A_FLAG)


class InfillingRequest(WireModel):
    """A body as far as Infilling goes."""

    parameters: Infilling = Field(description="an object")


class Enhancing(WireModel):
    """`parameters.enhance`: our own, a second pass in the same request."""

    scale: Annotated[Real, Field(gt=0, le=4)] | None = Field(None, description="a number above 0, at most 4")
    magnitude: Annotated[Whole, Field(ge=1, le=5)] | None = Field(
        None, description="a whole number from 1 to 5"
    )
    strength: Annotated[Real, Field(ge=0, le=1)] | None = Field(None, description="a number from 0 to 1")
    noise: Annotated[Real, Field(ge=0, le=1)] | None = Field(None, description="a number from 0 to 1")
    seed: Whole | None = Field(None, description="a whole number, taken modulo 2^32; 0 means any")
    upscaler: Literal["lanczos", "network"] | None = Field(None, description="lanczos or network")


class EnhancingParameters(WireModel):
    """`parameters` as far as Enhancing goes."""

    enhance: Enhancing = Field(description="an object")


class EnhancingRequest(WireModel):
    """A body as far as Enhancing goes."""

    parameters: EnhancingParameters = Field(description="an object")


class GenerateRequest(WireModel):
    """The body of `POST /ai/generate-image`."""

    input: Text | None = Field(None, description=A_TEXT)
    model: Name | None = Field(None, description=f"a model id of at most {LONGEST_NAME} characters")
    action: Literal["generate", "img2img", "infill"] | None = Field(
        None, description="generate, img2img or infill"
    )
    parameters: Parameters = Field(description="an object")


def read_request(body: Mapping[str, object]) -> GenerateRequest:
    """A body as a request.

    Raises:
        Rejected: a field is missing or not what is allowed; the message names it.
    """
    return validate_body(GenerateRequest, body)


def read_starting(asked: Parameters) -> Starting:
    """What is said of a picture that img2img starts from.

    Raises:
        Rejected: a value is not allowed; the message names it.
    """
    return validate_body(StartingRequest, {"parameters": asked.model_dump(by_alias=True)}).parameters


def read_infilling(asked: Parameters) -> Infilling:
    """What is said of one that infill draws into.

    Raises:
        Rejected: a value is not allowed; the message names it.
    """
    return validate_body(InfillingRequest, {"parameters": asked.model_dump(by_alias=True)}).parameters


def read_enhancing(asked: Parameters) -> Enhancing:
    """What is said of a second pass.

    Raises:
        Rejected: a value is not allowed; the message names it.
    """
    return validate_body(EnhancingRequest, {"parameters": {"enhance": asked.enhance}}).parameters.enhance


def validate_body(model: type[Request], body: Mapping[str, object]) -> Request:
    """A body as a model of what it may hold.

    Raises:
        Rejected: a field is missing or not what is allowed; the message names it.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise to_rejection(error, model) from None
