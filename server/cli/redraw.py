"""Requests of `naiad enhance` and `naiad variations`: img2img from a file, with parameters from its metadata."""

from base64 import b64encode
from collections.abc import Mapping

from server.errors import Rejected
from server.picture.inspection import parse_json, read_metadata
from server.request.images import open_image, to_upright_rgb
from server.request.passes import scale_size

COPIED_PARAMETERS = (
    *("steps", "scale", "uncond_scale", "cfg_rescale", "sampler", "noise_schedule", "dynamic_thresholding"),
    *("skip_cfg_above_sigma", "skip_cfg_below_sigma", "legacy_v3_extend", "prefer_brownian"),
)
"""Keys that a Comment shares with a request's `parameters`."""
VARIATIONS = (0.8, 0.1)
"""Strength and noise of NAI's Variations."""


def build_redraw_request(
    data: bytes, scale: float, strength: float, noise: float, overrides: Mapping[str, object]
) -> dict[str, object]:
    """Return the body of an img2img request that has an image as init image and its metadata as parameters.

    Both sides are multiplied by `scale` and rounded down as in NAI's web client. `overrides` replace the metadata's
    `input` and parameters, unless they are None. Raises `Rejected` if `data` is no image, or there is no prompt.
    """
    with open_image(data, "file") as image:
        inspection, size = read_metadata(image), to_upright_rgb(image).size
    comment = parse_json((inspection.text or inspection.alpha or {}).get("Comment", ""))
    parameters = {key: value for key, value in overrides.items() if value is not None}
    prompt = parameters.pop("input", comment.get("prompt"))
    if not isinstance(prompt, str):
        raise Rejected("file", "has no prompt in its metadata; give one with --prompt")
    width, height = scale_size(size, scale)
    defaults = {
        "negative_prompt": comment.get("uc", ""),
        **{key: comment[key] for key in COPIED_PARAMETERS if key in comment},
        "image": b64encode(data).decode(),
        "width": width,
        "height": height,
        "strength": strength,
        "noise": noise,
        "qualityToggle": False,
    }
    return {"input": prompt, "action": "img2img", "parameters": defaults | parameters}
