"""Reading what a picture says of itself, and who signed it: whatever `naiad inspect` and `naiad verify` print.

A picture is a stranger's: its size is looked at before it is unpacked, what cannot be read is refused in our own
words, and text is shown so that a terminal does nothing but print it.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Literal, cast

import numpy as np
from PIL import ExifTags, Image

from pipelines.types import Pixels
from server.errors import Rejected
from server.picture.signature import NOVELAI_KEY, SIGNED_HASH, is_public_key, verify_comment
from server.picture.stealth import extract
from server.picture.webp import ASCII, USER_COMMENT
from server.request.images import open_image

NESTED = {"Comment", "Description", "Source"}
"""What tells a user comment with all the fields from one that is a Comment itself."""

Layer = Literal["text", "alpha"]
Signer = Literal["ours", "given", "NovelAI", "another", "broken", "none"]
TRUSTED: tuple[Signer, ...] = ("ours", "given", "NovelAI")
SAID: Mapping[Signer, str] = {
    "ours": "valid, by this server: NOT NovelAI, key {}",
    "given": "valid, by the given key: NOT NovelAI, key {}",
    "NovelAI": "valid, by NovelAI, key {}",
    "another": "by a key that only the picture itself names, as anybody's could: NOT NovelAI, key {}",
    "broken": "BROKEN: signed, but not as it is now, or by a key that is not known here",
    "none": "not signed",
}


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """A picture as it was read.

    Attributes:
        format: "PNG", "WEBP" or "JPEG".
        rgb: the pixels (height, width, 3), uint8.
        text: the fields of the text chunks, or of the EXIF where there are none.
        alpha: the fields in the lowest bit of the alpha, or None when there are none.
    """

    format: str
    rgb: Pixels = field(repr=False)
    text: dict[str, str]
    alpha: dict[str, str] | None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.rgb.shape[1], self.rgb.shape[0]

    @property
    def layers(self) -> dict[Layer, dict[str, str]]:
        """The layers that say something."""
        layers: dict[Layer, dict[str, str]] = {"text": self.text, "alpha": self.alpha or {}}
        return {name: fields for name, fields in layers.items() if fields}

    @property
    def agree(self) -> bool:
        """Whether both layers say the same wherever both say something."""
        alpha = self.alpha or {}
        return all(self.text[key] == alpha[key] for key in self.text.keys() & alpha.keys())


@dataclass(frozen=True, slots=True)
class SignatureCheck:
    """Who signed a layer's Comment, and with which public key (Base64; None where there is no valid signature)."""

    layer: Layer
    signer: Signer
    key: str | None = None


def inspect(data: bytes, field: str = "file") -> Inspection:
    """Read a picture from a file's bytes.

    Args:
        field: what it is called in a refusal.

    Raises:
        Rejected: it is no PNG, WebP or JPEG that can be read, or has more than MAX_PIXELS.
    """
    with open_image(data, field) as picture:
        return read_metadata(picture)


def read_metadata(picture: Image.Image) -> Inspection:
    """What an open picture says."""
    text = {str(key): str(value) for key, value in picture.info.items() if isinstance(value, str)}
    rgb = np.asarray(picture.convert("RGB"))
    # NAI hides text in a full alpha alone; grey or indexed pictures have been through other hands
    alpha = _fields(extract(np.asarray(picture))) if picture.mode == "RGBA" else None
    return Inspection(str(picture.format), rgb, text or _exif_fields(picture), alpha)


def _exif_fields(picture: Image.Image) -> dict[str, str]:
    """The fields in an EXIF user comment: all of them as JSON, or a bare Comment (reference: metadata, 6)."""
    try:
        found: object = picture.getexif().get_ifd(ExifTags.IFD.Exif).get(USER_COMMENT)
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, struct.error):
        return {}
    if not isinstance(found, bytes) or not found.startswith(ASCII):
        return {}
    text = found.removeprefix(ASCII).decode(errors="replace")
    if parse_json(text).keys() & NESTED:
        return _fields(text) or {}
    return {"Comment": text} if parse_json(text) else {}


def _fields(text: str | None) -> dict[str, str] | None:
    """The strings of the JSON object in a text, None when there are none."""
    found = parse_json(text or "")
    return {key: value for key, value in found.items() if isinstance(value, str)} or None


def parse_json(text: str) -> dict[str, object]:
    """The JSON object in a text that a stranger may have written; empty when it is none."""
    try:
        found: object = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, object]", found) if isinstance(found, dict) else {}


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if isfinite(value) else _no_number(text)


def check_signatures(
    inspection: Inspection, own: str | None, given: str | None
) -> tuple[SignatureCheck, ...]:
    """Who signed each layer that has a Comment.

    Args:
        inspection: the picture.
        own: this server's public key, Base64.
        given: a key the user trusts, Base64.

    Raises:
        Rejected: the given key is none.
    """
    if given is not None and not is_public_key(given):
        raise Rejected("key", "not the Base64 of 32 bytes, as `Signature key` in a picture is")
    known: dict[Signer, str | None] = {"ours": own, "NovelAI": NOVELAI_KEY, "given": given}
    layers = inspection.layers.items()
    return tuple(_verdict(inspection.rgb, layer, told, known) for layer, told in layers if "Comment" in told)


def _verdict(
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


def is_trusted(verdicts: tuple[SignatureCheck, ...]) -> bool:
    """Whether every Comment is signed by this server, the given key or NovelAI, and there is one at all.

    An unsigned Comment beside a signed one is not trusted either: somebody has taken its signature away.
    """
    return bool(verdicts) and all(verdict.signer in TRUSTED for verdict in verdicts)


def format_signatures(verdicts: tuple[SignatureCheck, ...]) -> str:
    """What `naiad verify` prints: a line for each layer, and what a signature is worth."""
    if not verdicts:
        return "no Comment in the picture, so nothing to verify"
    lines = [f"{verdict.layer}: {_shown(SAID[verdict.signer].format(verdict.key))}" for verdict in verdicts]
    return "\n".join([*lines, "a signature covers the pixels' colours and the Comment, nothing else"])


def format_report(inspection: Inspection) -> str:
    """What `naiad inspect` prints: format and size, the text's fields, and those of the alpha that are not the same."""
    width, height = inspection.size
    lines = [f"{inspection.format}, {width} x {height}", *_layer_lines("text", inspection.text)]
    if inspection.alpha is None:
        return "\n".join([*lines, "alpha: none"])
    others = {key: told for key, told in inspection.alpha.items() if inspection.text.get(key) != told}
    if not inspection.agree:
        lines.append("THE LAYERS DIFFER")
    return "\n".join([*lines, *(_layer_lines("alpha", others) if others else ["alpha: the same"])])


def _layer_lines(layer: Layer, fields: Mapping[str, str]) -> list[str]:
    if not fields:
        return [f"{layer}: none"]
    return [f"{layer}:", *(line for key in fields for line in _field_lines(key, fields[key]))]


def _field_lines(key: str, value: str) -> list[str]:
    comment = parse_json(value) if key == "Comment" else {}
    if not comment:
        return [f"  {_shown(key)}: {_shown(value)}"]
    inner = (
        f"    {_shown(name)}: {_shown(json.dumps(told, ensure_ascii=False))}"
        for name, told in comment.items()
    )
    return ["  Comment:", *inner]


def _shown(text: str) -> str:
    """A text on one line in which nothing steers a terminal."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def to_json(inspection: Inspection, verdicts: tuple[SignatureCheck, ...]) -> dict[str, object]:
    """All of it as plain JSON values; a Comment is parsed where it can be."""
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
        "agree": inspection.agree,
        "signatures": [{"layer": said.layer, "signer": said.signer, "key": said.key} for said in verdicts],
        "trusted": is_trusted(verdicts),
    }
