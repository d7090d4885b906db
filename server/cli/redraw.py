"""Requests of `naiad enhance` and `naiad variations`: img2img from a file, with parameters from its metadata."""

from base64 import b64encode
from collections.abc import Mapping
from typing import cast

from server.errors import Rejected, shorten
from server.picture.inspection import read_metadata
from server.picture.prompts import read_settings
from server.request.images import open_image, to_upright_rgb
from server.request.passes import scale_size
from server.request.v4_prompt import V4_PROMPTS, flatten_v4_prompt, read_v4_prompt

COPIED_PARAMETERS = (
    *("steps", "scale", "uncond_scale", "cfg_rescale", "sampler", "noise_schedule", "dynamic_thresholding"),
    *("uncond_zero_sharpness", "skip_cfg_above_sigma", "skip_cfg_below_sigma"),
    *("legacy_v3_extend", "prefer_brownian"),
)
"""Keys that a Comment shares with a request's `parameters`."""
NAI4_MODEL = "nai-diffusion-4-5-full"
"""Requested for a prompt in NAI V4's syntax, which only the ids of V4 and later are read in."""
VARIATIONS = (0.8, 0.1)
"""Strength and noise of NAI's Variations."""


def build_redraw_request(
    data: bytes, scale: float, strength: float, noise: float, overrides: Mapping[str, object]
) -> dict[str, object]:
    """Return the body of an img2img request that has an image as init image and its metadata as parameters.

    Both sides are multiplied by `scale` and rounded down as in NAI's web client. `overrides` replace the metadata's
    `input` and parameters, unless they are None. Raises `Rejected` if `data` is no image, or there is no prompt.
    """
    image = open_image(data, "file")
    size, settings = to_upright_rgb(image).size, read_settings(read_metadata(image).fields)
    parameters = {key: value for key, value in overrides.items() if value is not None}
    placed = {} if "input" in parameters else _read_placed_prompts(settings)
    dialect = {} if "input" in parameters else _read_dialect(settings)
    prompt = parameters.pop("input", _flatten(settings, "v4_prompt") or settings.get("prompt"))
    if not isinstance(prompt, str):
        raise Rejected("file", "has no prompt in its metadata; give one with --prompt")
    width, height = scale_size(size, scale)
    defaults = {
        "negative_prompt": settings.get("uc", "")
        if placed
        else _flatten(settings, V4_PROMPTS[1]) or settings.get("uc", ""),
        **placed,
        **dialect,
        **{key: settings[key] for key in COPIED_PARAMETERS if key in settings},
        "image": b64encode(data).decode(),
        "width": width,
        "height": height,
        "strength": strength,
        "noise": noise,
        "uncond_zero": settings.get("uncond_zero", 0),
        "qualityToggle": False,
    }
    model = {"model": NAI4_MODEL} if _has_nai4_syntax(settings) else {}
    return {"input": prompt, "action": "img2img", "parameters": defaults | parameters, **model}


def warn_of_omissions(data: bytes) -> tuple[str, ...]:
    """Return warnings if an image was drawn with reference images, control maps or LoRAs, which no file holds."""
    settings = read_settings(read_metadata(open_image(data, "file")).fields)
    strengths, control = settings.get("reference_strength_multiple"), settings.get("controlnet_model")
    warnings: list[str] = []
    if isinstance(strengths, list) and strengths:
        drawn = f"the picture was drawn with {len(cast('list[object]', strengths))}"
        warnings.append(f"reference images: {drawn}, which are not in its file; left out")
    if isinstance(control, str):
        drawn = f"the picture was drawn with the ControlNet {shorten(control)}"
        warnings.append(f"control map: {drawn}, whose map is not in its file; left out")
    loras = [settings.get(key) for key in ("lora_unet_weights", "lora_clip_weights")]
    names = sorted(
        {name for found in loras if isinstance(found, dict) for name in cast("dict[str, object]", found)}
    )
    if names:
        drawn = f"the picture was drawn with {', '.join(map(shorten, names))}"
        warnings.append(f"LoRAs: {drawn}; left out, except those of the catalog")
    return tuple(warnings)


def _read_dialect(settings: Mapping[str, object]) -> dict[str, object]:
    """Return the parameter that turns the dialect on or off, as it was for a picture of naiad's."""
    value = settings.get("naiad")
    return {"dialect": "encoded" in value} if isinstance(value, dict) else {}


def _has_nai4_syntax(settings: Mapping[str, object]) -> bool:
    """Return whether the prompt is in NAI V4's syntax: it is structured, or `naiad` says so."""
    value = settings.get("naiad")
    for key in ("job", "prompts", "syntax"):
        value = cast("dict[str, object]", value).get(key) if isinstance(value, dict) else None
    return value == "nai4" or bool(_flatten(settings, "v4_prompt"))


def _read_placed_prompts(settings: Mapping[str, object]) -> dict[str, object]:
    """Return the structured prompts if their characters have places."""
    try:
        uses_places = read_v4_prompt(settings.get(V4_PROMPTS[0]), V4_PROMPTS[0]).uses_places
    except Rejected:
        uses_places = False
    return {key: settings[key] for key in V4_PROMPTS if uses_places and key in settings}


def _flatten(settings: Mapping[str, object], key: str) -> str:
    """Return a structured prompt of NAI's V4 as one text; empty if there is none, or it is malformed."""
    try:
        return flatten_v4_prompt(settings.get(key), key)
    except Rejected:
        return ""
