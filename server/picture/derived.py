"""The Comment of an image that was made from another one: upscaled, or by a director tool.

It describes the new image with the settings of its source, and keeps the source's own fields under `derived_from`,
without its signature.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TypeVar, cast

from PIL import Image

from server.errors import Rejected
from server.picture.comment import generator_text, strip_unwritable
from server.picture.inspection import read_metadata
from server.picture.prompts import parse_json, read_settings
from server.picture.signature import SIGNED_HASH
from server.request.images import decode_file, open_image, to_upright_rgb
from server.request.schema import LARGEST_AREA, LONGEST_TEXT
from server.request.v4_prompt import V4_PROMPTS, build_v4_prompt, read_v4_prompt

Value = TypeVar("Value")
SOURCE_TEXT_LIMIT = 50_000
"""Characters of a source image's text that are kept; fields that no longer fit are left out."""
REPLACED_KEYS = ("prompt", "naiad", "derived_from", "generator", SIGNED_HASH)
"""Keys of a Comment that describe the file itself and are not copied from the source."""


@dataclass(frozen=True, slots=True)
class SourceImage:
    """What is recorded of the image that another one was made from: SHA-256 of its RGB bytes, and its text fields."""

    pixels: str
    fields: Mapping[str, str] = field(repr=False)


def open_source(value: object, field: str) -> tuple[Image.Image, SourceImage]:
    """Return the image that a request's field holds, in upright RGB, and what is recorded of it.

    Raises:
        Rejected: it cannot be read, or has more than LARGEST_AREA pixels.
    """
    opened = open_image(decode_file(value, field), field, LARGEST_AREA)
    metadata, rgb = read_metadata(opened), to_upright_rgb(opened)
    return rgb, describe_source(rgb, metadata.fields)


def describe_source(rgb: Image.Image, fields: Mapping[str, str]) -> SourceImage:
    """Return what is recorded of an image with these pixels and text fields."""
    return SourceImage(sha256(rgb.tobytes()).hexdigest(), fields)


def build_derived_comment(
    source: SourceImage, width: int, height: int, naiad: Mapping[str, object] | None = None
) -> dict[str, object]:
    """Return the Comment: the source's keys, the new size, the `naiad` object, and the source's own metadata."""
    settings = read_settings(source.fields)
    copied = {key: value for key, value in settings.items() if key not in REPLACED_KEYS and _is_flat(value)}
    return {
        "prompt": read_prompt(source),
        **_keep_short(copied | _read_v4_prompts(settings)),
        "width": width,
        "height": height,
        **_describe_origin(source, naiad),
    }


def build_tool_comment(
    request: Mapping[str, object], source: SourceImage, naiad: Mapping[str, object] | None = None
) -> dict[str, object]:
    """Return the Comment of a tool's picture: the request's keys as NAI has them, then our own."""
    return {**request, **_describe_origin(source, naiad)}


def read_prompt(source: SourceImage) -> str:
    """Return the prompt in an image's metadata, or an empty string."""
    prompt = read_settings(source.fields).get("prompt")
    return strip_unwritable(prompt)[:LONGEST_TEXT] if isinstance(prompt, str) else ""


def _describe_origin(source: SourceImage, naiad: Mapping[str, object] | None) -> dict[str, object]:
    """Return the keys that every derived Comment ends with: the source's own metadata, `naiad` and the generator."""
    fields = source.fields
    texts = {key: strip_unwritable(fields[key]) for key in fields if key not in ("Comment", "Signature key")}
    # the Comment comes first, because it says most
    derived = _keep_short(_strip_signature(parse_json(fields.get("Comment", ""))) | texts)
    return {
        "derived_from": {**derived, "pixels": source.pixels},
        **({} if naiad is None else {"naiad": naiad}),
        "generator": generator_text(),
    }


def _keep_short(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return the values that fit together into SOURCE_TEXT_LIMIT, the first ones first."""
    left, kept = SOURCE_TEXT_LIMIT, dict[str, Value]()
    for key, value in values.items():
        size = len(key) + len(value if isinstance(value, str) else json.dumps(value))
        if size <= left:
            left, kept[key] = left - size, value
    return kept


def _read_v4_prompts(settings: Mapping[str, object]) -> dict[str, object]:
    """Return the captions in a Comment of NAI's V4, without the positions of its characters."""
    prompts = dict[str, object]()
    for key in V4_PROMPTS:
        try:
            captions = read_v4_prompt(settings.get(key), key).list_texts()
        except Rejected:
            continue
        if any(captions):
            prompts[key] = build_v4_prompt(captions)
    return prompts


def _strip_signature(comment: Mapping[str, object]) -> dict[str, str]:
    """Return a Comment as a text field without its signature; nothing if it is empty or too deeply nested."""
    unsigned = {key: value for key, value in comment.items() if key != SIGNED_HASH}
    try:
        return {"Comment": json.dumps(unsigned)} if unsigned else {}
    except RecursionError:
        return {}


def _is_flat(value: object) -> bool:
    """Return whether a value is a scalar or a list of scalars; NAI V3 has no others."""
    values = cast("list[object]", value) if isinstance(value, list) else [value]
    return not any(isinstance(item, dict | list) for item in values)
