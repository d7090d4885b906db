"""From a picture's own metadata to a request that starts from it: `naiad enhance` and `naiad variations`."""

from base64 import b64encode
from collections.abc import Mapping

from server.errors import Rejected
from server.picture.inspection import parse_json, read_metadata
from server.request.images import open_image, to_upright_rgb
from server.request.passes import scale_size

RECALLED = (
    *("steps", "scale", "uncond_scale", "cfg_rescale", "sampler", "noise_schedule", "dynamic_thresholding"),
    *("skip_cfg_above_sigma", "skip_cfg_below_sigma", "legacy_v3_extend", "prefer_brownian"),
)
"""What a Comment says of how it was drawn, in a request's own words."""
VARIATIONS = (0.8, 0.1)
"""Strength and noise of NAI's Variations."""


def build_redraw_request(
    data: bytes, scale: float, strength: float, noise: float, asked: Mapping[str, object]
) -> dict[str, object]:
    """A request's body: a picture drawn on from itself, by the prompts and settings in its metadata.

    Args:
        data: the file of the picture.
        scale: of its sides, rounded down as NAI's page does.
        asked: parameters, and `input`, that count instead of the picture's own; None leaves these.

    Raises:
        Rejected: the file cannot be read, or no prompt is known.
    """
    with open_image(data, "file") as picture:
        found, size = read_metadata(picture), to_upright_rgb(picture).size
    told = parse_json((found.text or found.alpha or {}).get("Comment", ""))
    given = {key: value for key, value in asked.items() if value is not None}
    prompt = given.pop("input", told.get("prompt"))
    if not isinstance(prompt, str):
        raise Rejected("file", "says no prompt; give one with --prompt")
    width, height = scale_size(size, scale)
    own = {
        "negative_prompt": told.get("uc", ""),
        **{key: told[key] for key in RECALLED if key in told},
        "image": b64encode(data).decode(),
        "width": width,
        "height": height,
        "strength": strength,
        "noise": noise,
        "qualityToggle": False,
    }
    return {"input": prompt, "action": "img2img", "parameters": own | given}
