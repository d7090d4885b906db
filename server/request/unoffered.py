"""Fields that ask for what this version does not offer: refused by name, or named in a warning.

Clients send many of them with every request, empty or as constants; these are harmless. Fields that never change an
image, because they are notes of NAI's page or belong to such an image, are listed in docs/api.md and read by nothing.
"""

from collections.abc import Mapping
from typing import cast

from server.errors import Rejected

CHARACTERS = "remove the character references; they are not offered by this version"
REFUSED = {
    "director_reference_images": CHARACTERS,
    "director_reference_images_cached": CHARACTERS,
    "masks": "send one mask in parameters.mask; several masks with seeds are not offered by this version",
}
"""Fields that hold images, and what to do instead of sending them."""
REFUSED_FLAGS = {
    "upscaled_enhance": "choose a scale of Enhance; its maximum is not offered by this version",
}
WARNED_FLAGS = {
    "tag_hint_transparent_background": "images are opaque; their background is not transparent",
    "variety_plus": "has no effect; send skip_cfg_above_sigma",
    "upscale": "the image is not upscaled; send it to /ai/upscale",
}
"""Fields that ask for something if they are true or an object with content."""


def refuse_unoffered(parameters: Mapping[str, object]) -> None:
    """Raise `Rejected` if `parameters` ask for something that is not offered."""
    for name, reason in REFUSED.items():
        if has_content(parameters.get(name)):
            raise Rejected(f"parameters.{name}", reason)
    for name, reason in REFUSED_FLAGS.items():
        if is_set(parameters.get(name)):
            raise Rejected(f"parameters.{name}", reason)


def warn_of_unoffered(parameters: Mapping[str, object], task: str) -> tuple[str, ...]:
    """Return warnings about fields of `parameters` that have no effect."""
    warnings = [f"{name}: {reason}" for name, reason in WARNED_FLAGS.items() if is_set(parameters.get(name))]
    if task != "infill" and has_content(parameters.get("mask")):
        warnings.append(f"mask: has no effect with {task}, only with infill")
    return tuple(warnings)


def has_content(value: object) -> bool:
    """Return whether a value is more than empty texts, nulls, zeros and false, in lists and objects too."""
    if isinstance(value, dict):
        return any(has_content(item) for item in cast("dict[str, object]", value).values())
    if isinstance(value, list):
        return any(has_content(item) for item in cast("list[object]", value))
    return bool(value)


def is_set(value: object) -> bool:
    """Return whether a flag is true, also as a text, or an object with content."""
    if isinstance(value, str):
        return value.lower() == "true"
    return value is True or (isinstance(value, dict) and has_content(cast("object", value)))
