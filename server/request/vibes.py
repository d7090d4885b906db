"""The reference images of a request, for vibe transfer: images, or what `/ai/encode-vibe` made of them.

NAI first had one image (`reference_image`), then lists (`reference_image_multiple`); its page sends
`reference_image_multiple_cached`, whose entries may hold a key instead of an image.
"""

from collections.abc import Iterator, Sequence
from typing import cast

from PIL import Image
from pydantic import Field

from pipelines.job import RgbImage, Vibe
from server.engine.model import ServedModel
from server.errors import Rejected
from server.request.encoded_vibe import is_encoded_vibe, unpack_vibe
from server.request.images import decode_file, is_image_file, open_image, to_upright_rgb
from server.request.schema import (
    A_FLAG,
    A_SHARE,
    A_STRENGTH,
    Flag,
    Parameters,
    Share,
    Strength,
    WireModel,
    validate_body,
)
from server.request.unoffered import has_content

SIDE = 448
"""Pixels of the square that NAI's page fits a reference image into, with black around it."""
MOST_VIBES = 16
STRENGTH, INFORMATION = 0.6, 1.0
"""NAI's defaults."""
SINGLE = ("reference_strength", "reference_information_extracted")
SEVERAL = ("reference_strength_multiple", "reference_information_extracted_multiple")
"""The values of `reference_image`, and those of the lists."""
NO_ADAPTER = "remove the reference images; the model has no image adapter (`vibe` in the catalog)"


class VibeParameters(WireModel):
    """The values that belong to reference images. Without an image they may hold anything."""

    reference_strength: Strength | None = Field(None, description=A_STRENGTH)
    reference_strength_multiple: list[Strength | None] | None = Field(
        None, description=f"{A_STRENGTH} for each image"
    )
    reference_information_extracted: Share | None = Field(None, description=A_SHARE)
    reference_information_extracted_multiple: list[Share | None] | None = Field(
        None, description=f"{A_SHARE} for each image"
    )
    normalize_reference_strength_multiple: Flag = Field(None, description=A_FLAG)


def has_references(parameters: Parameters) -> bool:
    """Return whether a request has reference images."""
    single, several = parameters.reference_image, parameters.reference_image_multiple
    return any(map(has_content, (single, several, parameters.reference_image_multiple_cached)))


def read_vibes(parameters: Parameters, model: ServedModel, secret: bytes) -> tuple[Vibe, ...]:
    """Read a request's reference images, the single one first.

    Raises:
        Rejected: the model has no image adapter, an image cannot be read, or a value is not allowed.
    """
    single, several = list(_list_single(parameters)), list(_list_several(parameters))
    sources = single + several
    if not sources:
        return ()
    if model.vibe is None:
        raise Rejected(sources[0][0], NO_ADAPTER)
    if len(sources) > MOST_VIBES:
        raise Rejected(sources[MOST_VIBES][0], f"{len(sources)} reference images; at most {MOST_VIBES}")
    values = _read_values(parameters, len(single), len(several))
    return tuple(
        _read_vibe(*source, *pair, model, secret) for source, pair in zip(sources, values, strict=True)
    )


def _read_values(parameters: Parameters, single: int, several: int) -> list[tuple[float, float]]:
    """Return strength and information of each image, given how many are single and how many are in lists."""
    used = {
        "normalize_reference_strength_multiple",
        *(SINGLE if single else ()),
        *(SEVERAL if several else ()),
    }
    sent = parameters.model_dump(include=used)
    values = validate_body(VibeParameters, sent, ("parameters",))
    strengths = [_choose(values.reference_strength, STRENGTH)] * single
    shares = [_choose(values.reference_information_extracted, INFORMATION)] * single
    strengths += _fill(values.reference_strength_multiple, several, STRENGTH, SEVERAL[0])
    shares += _fill(values.reference_information_extracted_multiple, several, INFORMATION, SEVERAL[1])
    if values.normalize_reference_strength_multiple:
        strengths = normalize(strengths)
    return list(zip(strengths, shares, strict=True))


def normalize(strengths: Sequence[float]) -> list[float]:
    """Return strengths whose amounts add up to at most 1, divided by their sum if it is more."""
    total = max(1.0, sum(map(abs, strengths)))
    return [strength / total for strength in strengths]


def _list_single(parameters: Parameters) -> Iterator[tuple[str, object]]:
    if has_content(parameters.reference_image):
        yield "parameters.reference_image", parameters.reference_image


def _list_several(parameters: Parameters) -> Iterator[tuple[str, object]]:
    """Yield the name and the value of each image in the lists; an entry without one is refused."""
    for name in ("reference_image_multiple", "reference_image_multiple_cached"):
        images = getattr(parameters, name)
        if not has_content(images):
            continue
        if not isinstance(images, list):
            raise Rejected(f"parameters.{name}", "not an array; send an array of images in Base64")
        for index, entry in enumerate(cast("list[object]", images)):
            is_keyed = isinstance(entry, dict)
            value = cast("dict[str, object]", entry).get("data") if is_keyed else entry
            field = f"parameters.{name}.{index}{'.data' if is_keyed else ''}"
            if not has_content(value):
                raise Rejected(field, "no image; send one in Base64, or remove the entry")
            yield field, value


def _fill(values: Sequence[float | None] | None, count: int, default: float, name: str) -> list[float]:
    """Return a value for each image: those given, or NAI's default without any."""
    if not values:
        return [default] * count
    if len(values) != count:
        counts = " for ".join(
            f"{number} {noun}{'' if number == 1 else 's'}"
            for number, noun in ((len(values), "value"), (count, "image"))
        )
        reason = f"{counts}; send one for each, or none for {default:g}"
        raise Rejected(f"parameters.{name}", reason)
    return [_choose(value, default) for value in values]


def _choose(value: float | None, default: float) -> float:
    return default if value is None else value


def _read_vibe(
    field: str, value: object, strength: float, share: float, model: ServedModel, secret: bytes
) -> Vibe:
    data = decode_file(value, field)
    if is_encoded_vibe(data):
        encoded = unpack_vibe(data, field, model, secret)
        return Vibe(encoded, strength, encoded.information_extracted)
    if not is_image_file(data):
        reason = (
            "neither a PNG, WebP or JPEG image nor a vibe of this server's /ai/encode-vibe; send the image"
        )
        raise Rejected(field, reason)
    return Vibe(read_reference(data, field), strength, share)


def read_reference(data: bytes, field: str) -> RgbImage:
    """Decode an image file and fit it into NAI's square, with black around it and behind what is transparent.

    Raises:
        Rejected: the image cannot be read.
    """
    rgb = to_upright_rgb(open_image(data, field), "black")
    scale = SIDE / max(rgb.size)
    width, height = (max(1, round(side * scale)) for side in rgb.size)
    if rgb.size != (width, height):
        rgb = rgb.resize((width, height), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (SIDE, SIDE))
    square.paste(rgb, ((SIDE - width) // 2, (SIDE - height) // 2))
    return RgbImage(SIDE, SIDE, square.tobytes())
