"""Reading an image's metadata and verifying its signatures, for `naiad inspect` and `naiad verify`.

Images are untrusted input: the size is checked before decoding, unreadable files raise Rejected, and text is escaped
so that it cannot control a terminal.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pipelines.errors import escape
from pipelines.types import Pixels
from server.errors import Rejected
from server.picture.exif import Exif
from server.picture.prompts import INFOTEXT, is_infotext, parse_json, read_settings
from server.picture.signature import NOVELAI_KEY, SIGNED_HASH, is_public_key, verify_comment
from server.picture.stealth import extract
from server.request.images import OpenedImage, open_image, to_plain_mode

FIELD_NAMES = {"Comment", "Description", "Source"}
"""An EXIF user comment with one of these keys holds all fields; any other JSON object is a bare Comment."""

UNRELATED = {"Software"}
"""Fields that other programs overwrite without having made the image."""

Layer = Literal["text", "exif", "alpha"]
Signer = Literal["ours", "given", "NovelAI", "another", "broken", "none"]
TRUSTED_SIGNERS: tuple[Signer, ...] = ("ours", "given", "NovelAI")
SIGNER_MESSAGES: Mapping[Signer, str] = {
    "ours": "valid, by this server: NOT NovelAI, key {}",
    "given": "valid, by the given key: NOT NovelAI, key {}",
    "NovelAI": "valid, by NovelAI, key {}",
    "another": "by an unknown key that only the image itself names, which proves nothing: NOT NovelAI, key {}",
    "broken": "BROKEN: image or Comment changed after signing, or signed by an unknown key",
    "none": "not signed",
}


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """An image file's pixels and metadata.

    Attributes:
        format: "PNG", "WEBP" or "JPEG".
        text: the fields of the text chunks or comments, or of the EXIF if there are none.
        exif: the fields of the EXIF, if there are text chunks or comments too.
        alpha: the fields in the lowest bit of the alpha, or None if there are none.
    """

    format: str
    rgb: Pixels = field(repr=False)
    text: dict[str, str]
    exif: dict[str, str]
    alpha: dict[str, str] | None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.rgb.shape[1], self.rgb.shape[0]

    @property
    def layers(self) -> dict[Layer, dict[str, str]]:
        """The layers that have fields."""
        layers: dict[Layer, dict[str, str]] = {
            "text": self.text,
            "exif": self.exif,
            "alpha": self.alpha or {},
        }
        return {name: fields for name, fields in layers.items() if fields}

    @property
    def layers_agree(self) -> bool:
        """Whether every field that describes the image has the same value in all layers that have it."""
        layers = self.layers.values()
        pairs = {(key, value) for fields in layers for key, value in fields.items() if key not in UNRELATED}
        return len(pairs) == len({key for key, _ in pairs})

    @property
    def fields(self) -> dict[str, str]:
        """The fields of all layers; if they differ, those of the layer that holds a Comment and a prompt."""
        merged = dict[str, str]()
        for fields in sorted(self.layers.values(), key=_count_facts, reverse=True):
            merged = fields | merged
        return merged


def _count_facts(fields: Mapping[str, str]) -> int:
    """Return how much of Comment and prompt some fields hold, from 0 to 2."""
    return bool(parse_json(fields.get("Comment", ""))) + ("prompt" in read_settings(fields))


@dataclass(frozen=True, slots=True)
class SignatureCheck:
    """Who signed a layer's Comment, and the public key in Base64, None without a valid signature."""

    layer: Layer
    signer: Signer
    key: str | None = None


def inspect(data: bytes, field: str = "file") -> Inspection:
    """Read an image from a file's bytes; `field` is what an error calls the file.

    Raises:
        Rejected: it is no PNG, WebP or JPEG that can be read, or has more than MAX_PIXELS.
    """
    return read_metadata(open_image(data, field))


def read_metadata(image: OpenedImage) -> Inspection:
    """Return the pixels as they are stored, and the metadata."""
    rgb = np.asarray(to_plain_mode(image.pixels).convert("RGB"))
    # NAI writes the alpha layer into RGBA files only; other programs convert them to gray or indexed color
    hidden = extract(np.asarray(image.pixels)) if image.pixels.mode == "RGBA" else None
    text, exif = dict(image.texts), read_exif_fields(image.exif)
    return Inspection(
        image.format, rgb, text or exif, exif if text else {}, _parse_fields(hidden or "") or None
    )


def read_exif_fields(exif: Exif) -> dict[str, str]:
    """Return the fields in an EXIF user comment: all of them as JSON, or a bare Comment (reference: metadata, 6)."""
    fields = _parse_fields(exif.user_comment)
    if not fields.keys() & FIELD_NAMES and parse_json(exif.user_comment):
        fields = {"Comment": exif.user_comment}
    return ({"Description": exif.description} if fields and exif.description else {}) | fields


def _parse_fields(text: str) -> dict[str, str]:
    """Return the string values of a JSON object, or A1111's text as a field."""
    if is_infotext(text):
        return {INFOTEXT: text}
    return {key: value for key, value in parse_json(text).items() if isinstance(value, str)}


def check_signatures(
    inspection: Inspection, server_key: str | None, trusted_key: str | None
) -> tuple[SignatureCheck, ...]:
    """Verify each layer that has a Comment against the known keys, in Base64, and the one the image names.

    Raises:
        Rejected: `trusted_key` is not a public key.
    """
    if trusted_key is not None and not is_public_key(trusted_key):
        raise Rejected("key", "must be 32 bytes in Base64, like the field `Signature key` of an image")
    known: dict[Signer, str | None] = {"ours": server_key, "NovelAI": NOVELAI_KEY, "given": trusted_key}
    return tuple(
        _check_layer(inspection.rgb, layer, fields, known)
        for layer, fields in inspection.layers.items()
        if "Comment" in fields
    )


def _check_layer(
    rgb: Pixels, layer: Layer, fields: Mapping[str, str], known: Mapping[Signer, str | None]
) -> SignatureCheck:
    comment = fields["Comment"]
    if SIGNED_HASH not in parse_json(comment):
        return SignatureCheck(layer, "none")
    keys: dict[Signer, str | None] = {**known, "another": fields.get("Signature key")}
    for signer, key in keys.items():
        if key is not None and verify_comment(rgb, comment, key):
            return SignatureCheck(layer, signer, key)
    return SignatureCheck(layer, "broken")


def is_trusted(checks: tuple[SignatureCheck, ...]) -> bool:
    """Return whether there is a Comment and each is signed by this server, the user's trusted key or NovelAI.

    An unsigned Comment in one layer is not trusted even if the other layer is signed: its signature was removed.
    """
    return bool(checks) and all(check.signer in TRUSTED_SIGNERS for check in checks)


def format_signatures(checks: tuple[SignatureCheck, ...]) -> str:
    """Return the output of `naiad verify`: one line per layer, and what a signature covers."""
    if not checks:
        return "the image has no Comment, so there is nothing to verify"
    lines = [f"{check.layer}: {escape(SIGNER_MESSAGES[check.signer].format(check.key))}" for check in checks]
    return "\n".join([*lines, "a signature covers the colors of the pixels and the Comment, nothing else"])


def format_report(inspection: Inspection) -> str:
    """Return the output of `naiad inspect`: format, size, the text fields, and what the other layers add to them."""
    width, height = inspection.size
    lines = [f"{inspection.format}, {width} x {height}", *_format_layer("text", inspection.text)]
    if inspection.exif:
        lines += _format_additions("exif", inspection.exif, inspection.text)
    if not inspection.layers_agree:
        lines.append("THE LAYERS DIFFER")
    if inspection.alpha is None:
        return "\n".join([*lines, "alpha: none"])
    return "\n".join([*lines, *_format_additions("alpha", inspection.alpha, inspection.text)])


def _format_additions(layer: Layer, fields: Mapping[str, str], text: Mapping[str, str]) -> list[str]:
    added = {key: value for key, value in fields.items() if text.get(key) != value}
    return _format_layer(layer, added) if added else [f"{layer}: the same"]


def _format_layer(layer: Layer, fields: Mapping[str, str]) -> list[str]:
    if not fields:
        return [f"{layer}: none"]
    return [f"{layer}:", *(line for key in fields for line in _format_field(key, fields[key]))]


def _format_field(key: str, value: str) -> list[str]:
    comment = parse_json(value) if key == "Comment" else {}
    if not comment:
        return [f"  {escape(key)}: {escape(value)}"]
    entries = {name: json.dumps(entry, ensure_ascii=False) for name, entry in comment.items()}
    return ["  Comment:", *(f"    {escape(name)}: {escape(entry)}" for name, entry in entries.items())]


def to_json(inspection: Inspection, checks: tuple[SignatureCheck, ...]) -> dict[str, object]:
    """Return image, metadata and checks as JSON values; a Comment is an object if it can be parsed."""
    width, height = inspection.size
    return {
        "format": inspection.format,
        "width": width,
        "height": height,
        "layers": {
            layer: {
                key: (parse_json(value) or value) if key == "Comment" else value
                for key, value in fields.items()
            }
            for layer, fields in inspection.layers.items()
        },
        "agree": inspection.layers_agree,
        "signatures": [{"layer": check.layer, "signer": check.signer, "key": check.key} for check in checks],
        "trusted": is_trusted(checks),
    }
