"""`POST /ai/upscale`: a picture enlarged, and what it then says of itself and of the picture it came from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Annotated, Literal, cast

from pydantic import Field

from pipelines.job import RgbImage, UpscaleJob
from server.engine.engine import Result
from server.errors import Rejected
from server.picture.comment import generator_text, naiad_version, strip_unwritable
from server.picture.inspection import parse_json, read_metadata
from server.picture.signature import SIGNED_HASH
from server.picture.webp import check_webp_size
from server.picture.writer import ImageFormat, MetadataPolicy, write_picture
from server.request import images as sources
from server.request.images import MAX_PIXELS, open_image
from server.request.schema import LARGEST_AREA, Real, WireModel, validate_body

LONGEST_CARRIED = 50_000
"""Characters of a source's own text beyond which only its hash is kept."""
OWN = ("prompt", "naiad", "derived_from", "generator", SIGNED_HASH)
"""What a Comment says of the file it is in, and of no other."""


class UpscaleRequest(WireModel):
    """The body, in NAI's old form and in the new one, which knows no scale; it means two there."""

    image: object = Field(None, description="a picture in Base64")
    scale: Annotated[Real, Field(gt=1, le=4)] | None = Field(None, description="a number above 1, at most 4")
    image_format: Literal["png", "webp"] | None = Field(None, description="png or webp")


@dataclass(frozen=True, slots=True)
class Upscale:
    """A request that was read: what is to be done, the hash of the source's pixels, and its text fields."""

    work: UpscaleJob
    digest: str
    fields: Mapping[str, str] = field(repr=False)
    image_format: ImageFormat


def read_upscale(body: Mapping[str, object]) -> Upscale:
    """Read a body; `width` and `height` in it, the source's own size, are not needed.

    Raises:
        Rejected: there is no picture that can be read, or what is asked for is too large.
    """
    asked = validate_body(UpscaleRequest, body)
    if not asked.image:
        raise Rejected("image", "is required: a picture in Base64")
    with open_image(sources.decode_base64(asked.image, "image"), "image", LARGEST_AREA) as sent:
        said, rgb = read_metadata(sent), sources.to_upright_rgb(sent)
    picture, scale = RgbImage(*rgb.size, rgb.tobytes()), asked.scale or 2.0
    image_format = asked.image_format or "png"
    width, height = round(picture.width * scale), round(picture.height * scale)
    if width * height > MAX_PIXELS:
        made = f"{scale:g} makes {picture.width}x{picture.height} {width}x{height}"
        raise Rejected("scale", f"{made}, {width * height} pixels; at most {MAX_PIXELS}")
    check_webp_size(image_format, width, height, "image_format")
    digest, fields = sha256(picture.rgb).hexdigest(), said.text or said.alpha or {}
    return Upscale(UpscaleJob(picture, width, height), digest, fields, image_format)


def write_upscaled(imprint: MetadataPolicy, upscale: Upscale, drawn: Result, way: str) -> bytes:
    """The file of an enlarged picture, signed as ours.

    Args:
        way: what enlarged it: "lanczos", or the network's file name.
    """
    work = upscale.work
    about = {
        "version": naiad_version(),
        "files": dict(imprint.files),
        "upscale": {"width": work.width, "height": work.height, "by": way},
        "inputs": {"picture": upscale.digest},
    }
    tell = partial(build_upscale_comment, upscale)
    return write_picture(imprint, drawn.pictures[0], tell, about, drawn.run_seconds, upscale.image_format)


def build_upscale_comment(upscale: Upscale, about: Mapping[str, object] | None = None) -> dict[str, object]:
    """The Comment of an enlarged picture: the source's own keys with the new size, and where they are from."""
    source, fields = parse_json(upscale.fields.get("Comment", "")), upscale.fields
    derived = {
        key: strip_unwritable(fields[key]) for key in fields if key not in ("Comment", "Signature key")
    }
    derived |= _unsigned(source)
    if sum(map(len, derived.values())) > LONGEST_CARRIED:
        source, derived = {}, {}
    prompt = source.get("prompt")
    return {
        "prompt": strip_unwritable(prompt) if isinstance(prompt, str) else "",
        **{key: value for key, value in source.items() if key not in OWN and _is_flat(value)},
        "width": upscale.work.width,
        "height": upscale.work.height,
        "derived_from": {**derived, "pixels": upscale.digest},
        **({} if about is None else {"naiad": about}),
        "generator": generator_text(),
    }


def _unsigned(comment: Mapping[str, object]) -> dict[str, str]:
    """A Comment as a field, without its signature; none for one that is empty or nested beyond measure."""
    kept = {key: value for key, value in comment.items() if key != SIGNED_HASH}
    try:
        return {"Comment": json.dumps(kept)} if kept else {}
    except RecursionError:
        return {}


def _is_flat(value: object) -> bool:
    """Whether a value holds no others, or is a list of such: NAI V3 has no more."""
    values = cast("list[object]", value) if isinstance(value, list) else [value]
    return not any(isinstance(one, dict | list) for one in values)
