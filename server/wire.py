"""The request as clients send it: names, types and bounds that depend on no model, and nothing else.

Tolerant where real clients differ: unknown keys are ignored, numbers and booleans may come as strings, `action`
may be missing, and None everywhere means that the server decides.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

LARGEST_AREA = 3_145_728
LONGEST_TEXT = 40_000
MOST_STEPS = 50
MOST_SAMPLES = 8

Side = Annotated[int, Field(ge=64, multiple_of=32, le=LARGEST_AREA // 64)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=LONGEST_TEXT)]


class Wire(BaseModel):
    """What the two halves of a request have in common: frozen, and deaf to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Parameters(Wire):
    """`parameters`, as far as text-to-image goes."""

    width: Side | None = None
    height: Side | None = None
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] | None = None
    scale: Annotated[Finite, Field(ge=0, le=50)] | None = None
    sampler: str | None = None
    noise_schedule: str | None = None
    seed: int | None = None
    n_samples: Annotated[int, Field(ge=1, le=MOST_SAMPLES)] | None = None
    prompt: Text | None = None
    negative_prompt: Text | None = None
    uc: Text | None = None
    cfg_rescale: Annotated[Finite, Field(ge=0, le=1)] | None = None
    uncond_scale: Annotated[Finite, Field(ge=0, le=10)] | None = None
    dynamic_thresholding: bool | None = None
    sm: bool | None = None
    sm_dyn: bool | None = None
    skip_cfg_above_sigma: Finite | None = None
    skip_cfg_below_sigma: Finite | None = None
    prefer_brownian: bool | None = None
    legacy_v3_extend: bool | None = None
    image: str | None = None
    mask: str | None = None


class GenerateRequest(Wire):
    """The body of `POST /ai/generate-image`."""

    input: Text = ""
    model: Annotated[str, Field(max_length=200)] = "nai-diffusion-3"
    action: Literal["generate", "img2img", "infill"] = "generate"
    parameters: Parameters = Parameters()
