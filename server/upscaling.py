"""`POST /ai/upscale`: a picture enlarged, and what it then says of itself and of the picture it came from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Annotated, Literal

from pydantic import Field

from pipelines.job import Enlargement
from server import sources
from server.decoding import MOST_PIXELS
from server.engine import Drawn
from server.errors import Rejected
from server.inspection import inspect, parsed
from server.metadata import generator, release, written
from server.pictures import ImageFormat, Imprint, imprinted
from server.signature import SIGNED_HASH
from server.wire import LARGEST_AREA, Real, Wire, validated

LONGEST_CARRIED = 50_000
"""Characters of a source's own text beyond which only its hash is kept."""
OWN = ("naiad", "derived_from", "generator", SIGNED_HASH)
"""What a Comment says of the file it is in, and of no other."""


class UpscaleRequest(Wire):
    """The body, in NAI's old form and in the new one, which knows no scale; it means two there."""

    image: object = Field(None, description="a picture in Base64")
    scale: Annotated[Real, Field(gt=1, le=4)] | None = Field(None, description="a number above 1, at most 4")
    image_format: Literal["png", "webp"] | None = Field(None, description="png or webp")


@dataclass(frozen=True, slots=True)
class Upscale:
    """A request that was read: what is to be done, and what the source said of itself (its text fields)."""

    work: Enlargement
    fields: Mapping[str, str] = field(repr=False)
    image_format: ImageFormat


def read_upscale(body: Mapping[str, object]) -> Upscale:
    """Read a body; `width` and `height` in it, the source's own size, are not needed.

    Raises:
        Rejected: there is no picture that can be read, or what is asked for is too large.
    """
    asked = validated(UpscaleRequest, body)
    if not asked.image:
        raise Rejected("image", "is required: a picture in Base64")
    said = inspect(sources.decoded(asked.image, "image"), "image")
    picture, scale = sources.picture(asked.image, "image"), asked.scale or 2.0
    if picture.width * picture.height > LARGEST_AREA:
        raise Rejected(
            "image", f"{picture.width}x{picture.height}; at most {LARGEST_AREA} pixels are enlarged"
        )
    width, height = round(picture.width * scale), round(picture.height * scale)
    if width * height > MOST_PIXELS:
        made = f"{scale:g} makes {picture.width}x{picture.height} {width}x{height}"
        raise Rejected("scale", f"{made}, {width * height} pixels; at most {MOST_PIXELS}")
    return Upscale(
        Enlargement(picture, width, height), said.text or said.alpha or {}, asked.image_format or "png"
    )


def enlarged(imprint: Imprint, upscale: Upscale, drawn: Drawn, way: str) -> bytes:
    """The file of an enlarged picture, signed as ours.

    Args:
        way: what enlarged it: "lanczos", or the network's file name.
    """
    work = upscale.work
    about = {
        "version": release(),
        "upscale": {"width": work.width, "height": work.height, "by": way},
        "inputs": {"picture": sha256(work.picture.rgb).hexdigest()},
    }
    tell = partial(comment, upscale)
    return imprinted(imprint, drawn.pictures[0], tell, about, drawn.seconds, upscale.image_format)


def comment(upscale: Upscale, about: Mapping[str, object] | None = None) -> dict[str, object]:
    """The Comment of an enlarged picture: the source's own keys with the new size, and where they are from."""
    source = parsed(upscale.fields.get("Comment", ""))
    carried = {key: value for key, value in source.items() if key not in OWN}
    derived = {
        key: written(value)
        for key, value in upscale.fields.items()
        if key not in ("Comment", "Signature key")
    }
    if source:
        derived["Comment"] = json.dumps({key: value for key, value in source.items() if key != SIGNED_HASH})
    if sum(map(len, derived.values())) > LONGEST_CARRIED:
        carried, derived = {}, {}
    digest = sha256(upscale.work.picture.rgb).hexdigest()
    return {
        "prompt": "",
        **carried,
        "width": upscale.work.width,
        "height": upscale.work.height,
        "derived_from": {**derived, "pixels": digest},
        **({} if about is None else {"naiad": about}),
        "generator": generator(),
    }
