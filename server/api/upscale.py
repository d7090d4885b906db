"""Reading the body of `POST /ai/upscale`, and writing the upscaled image with metadata about itself and its source."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Annotated, Literal, TypeVar, cast

from pydantic import Field

from pipelines.job import RgbImage, UpscaleJob
from server.engine.engine import Result
from server.errors import Rejected
from server.picture.comment import generator_text, naiad_version, strip_unwritable
from server.picture.inspection import read_metadata
from server.picture.prompts import parse_json, read_settings
from server.picture.signature import SIGNED_HASH
from server.picture.webp import check_webp_size
from server.picture.writer import ImageFormat, MetadataPolicy, write_picture
from server.request.images import MAX_PIXELS, decode_base64, open_image, to_upright_rgb
from server.request.schema import LARGEST_AREA, LONGEST_TEXT, Real, WireModel, validate_body
from server.request.v4_prompt import build_v4_prompt, read_captions

Value = TypeVar("Value")
SOURCE_TEXT_LIMIT = 50_000
"""Characters of a source image's text that are kept; fields that no longer fit are left out."""
V4_PROMPTS = ("v4_prompt", "v4_negative_prompt")
REPLACED_KEYS = ("prompt", "naiad", "derived_from", "generator", SIGNED_HASH)
"""Keys of a Comment that describe the file itself and are not copied from the source."""


class UpscaleRequest(WireModel):
    """The request body. NAI's newer form has no `scale`, which then defaults to 2."""

    image: object = Field(None, description="an image in Base64")
    scale: Annotated[Real, Field(gt=1, le=4)] | None = Field(None, description="a number above 1, at most 4")
    image_format: Literal["png", "webp"] | None = Field(None, description="png or webp")


@dataclass(frozen=True, slots=True)
class Upscale:
    """A request that was read: the job, and the source's pixel hash and text fields."""

    job: UpscaleJob
    source_hash: str
    source_fields: Mapping[str, str] = field(repr=False)
    image_format: ImageFormat


def read_upscale(body: Mapping[str, object]) -> Upscale:
    """Read a request body, or raise `Rejected`; `width` and `height` in it, the source's own size, are ignored."""
    request = validate_body(UpscaleRequest, body)
    if not request.image:
        raise Rejected("image", "is required: an image in Base64")
    source = open_image(decode_base64(request.image, "image"), "image", LARGEST_AREA)
    metadata, rgb = read_metadata(source), to_upright_rgb(source)
    image, scale = RgbImage(*rgb.size, rgb.tobytes()), request.scale or 2.0
    image_format = request.image_format or "png"
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > MAX_PIXELS:
        sizes = f"{scale:g} makes {image.width}x{image.height} {width}x{height}"
        raise Rejected("scale", f"{sizes}, {width * height} pixels; at most {MAX_PIXELS}")
    check_webp_size(image_format, width, height, "image_format")
    source_hash = sha256(image.rgb).hexdigest()
    return Upscale(UpscaleJob(image, width, height), source_hash, metadata.fields, image_format)


def write_upscaled(metadata: MetadataPolicy, upscale: Upscale, result: Result, method: str) -> bytes:
    """Return the signed file of an image upscaled by a `method`: "lanczos", or the file name of the upscaler."""
    job, image_format = upscale.job, upscale.image_format
    naiad_fields = {
        "version": naiad_version(),
        "files": dict(metadata.files),
        "upscale": {"width": job.width, "height": job.height, "by": method},
        "inputs": {"picture": upscale.source_hash},
    }
    build = partial(build_upscale_comment, upscale)
    return write_picture(metadata, result.images[0], build, naiad_fields, result.run_seconds, image_format)


def build_upscale_comment(upscale: Upscale, naiad: Mapping[str, object] | None = None) -> dict[str, object]:
    """Return the Comment of an upscaled image: the source's keys, the new size, and the source's own metadata."""
    fields = upscale.source_fields
    source = read_settings(fields)
    prompt = source.get("prompt")
    copied = {key: value for key, value in source.items() if key not in REPLACED_KEYS and _is_flat(value)}
    texts = {key: strip_unwritable(fields[key]) for key in fields if key not in ("Comment", "Signature key")}
    # the Comment comes first, because it says most
    derived = _keep_short(_strip_signature(parse_json(fields.get("Comment", ""))) | texts)
    return {
        "prompt": strip_unwritable(prompt)[:LONGEST_TEXT] if isinstance(prompt, str) else "",
        **_keep_short(copied | _read_v4_prompts(source)),
        "width": upscale.job.width,
        "height": upscale.job.height,
        "derived_from": {**derived, "pixels": upscale.source_hash},
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


def _read_v4_prompts(source: Mapping[str, object]) -> dict[str, object]:
    """Return the captions in a Comment of NAI's V4, without the positions of its characters."""
    prompts = dict[str, object]()
    for key in V4_PROMPTS:
        try:
            captions = read_captions(source.get(key), key)
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
