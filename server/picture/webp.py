"""Lossless WebP encoding, with the text fields in EXIF where NAI's WebP files have them."""

import json
import struct
from collections.abc import Mapping
from io import BytesIO

from PIL import Image

from pipelines.types import Pixels
from server.errors import Rejected
from server.picture.stealth import Columns, add_alpha

MAX_SIDE = 16383
"""Pixels; the format's limit for width and height."""
TEXT, LONG, UNDEFINED = 2, 4, 7
"""TIFF field types."""
DOCUMENT_NAME, IMAGE_DESCRIPTION, SOFTWARE, EXIF_DIRECTORY = 0x010D, 0x010E, 0x0131, 0x8769
USER_COMMENT = 0x9286
ASCII_PREFIX = b"ASCII\0\0\0"
"""The 8 bytes before a user comment that name its encoding."""


def encode_webp(pixels: Pixels, fields: Mapping[str, str], columns: Columns | None = None) -> bytes:
    """Encode an image (height, width, 3 or 4) as a lossless WebP, with the fields in EXIF; no EXIF if there are none.

    `columns` give an image without alpha one, see stealth.py.

    Raises:
        Rejected: a side is longer than MAX_SIDE.
    """
    height, width = pixels.shape[:2]
    check_webp_size("webp", width, height)
    if columns is not None:
        pixels = add_alpha(pixels, columns)
    file = BytesIO()
    exif = build_exif(fields) if fields else b""
    # in lossless mode `quality` is effort; a higher one takes five times as long and saves nothing on drawings
    Image.fromarray(pixels).save(file, "WEBP", lossless=True, exact=True, method=0, quality=0, exif=exif)
    return file.getvalue()


def check_webp_size(format: str, width: int, height: int, field: str = "parameters.image_format") -> None:
    """Raise Rejected for a WebP with a side longer than MAX_SIDE; `field` is the request's field for the format."""
    if format == "webp" and max(height, width) > MAX_SIDE:
        limit = f"sides are at most {MAX_SIDE} pixels; png has no such limit"
        raise Rejected(field, f"webp cannot hold {width}x{height}; {limit}")


def build_exif(fields: Mapping[str, str]) -> bytes:
    """Return the fields as a big-endian TIFF without the `Exif` prefix.

    Three tags are for any viewer; the user comment holds all fields as JSON.
    """
    all_fields = json.dumps(dict(fields), separators=(",", ":"), sort_keys=True).encode()
    exif_entries = {USER_COMMENT: (UNDEFINED, ASCII_PREFIX + all_fields)}
    keys = {DOCUMENT_NAME: "Title", IMAGE_DESCRIPTION: "Description", SOFTWARE: "Source"}
    texts = {tag: (TEXT, fields[key].encode() + b"\0") for tag, key in keys.items() if key in fields}

    def build_main_directory(exif_offset: int) -> bytes:
        return _build_directory({**texts, EXIF_DIRECTORY: (LONG, struct.pack(">I", exif_offset))}, start=8)

    exif_offset = 8 + len(build_main_directory(0))
    header = struct.pack(">2sHI", b"MM", 42, 8)
    return header + build_main_directory(exif_offset) + _build_directory(exif_entries, exif_offset)


def _build_directory(entries: Mapping[int, tuple[int, bytes]], start: int) -> bytes:
    """Return a TIFF directory for the offset `start`, followed by the values longer than 4 bytes."""
    head, values = struct.pack(">H", len(entries)), b""
    values_start = start + 2 + 12 * len(entries) + 4
    for tag, (kind, value) in sorted(entries.items()):
        count = len(value) // 4 if kind == LONG else len(value)
        head += struct.pack(">HHI", tag, kind, count)
        if len(value) <= 4:
            head += value.ljust(4, b"\0")
        else:
            head += struct.pack(">I", values_start + len(values))
            values += value + b"\0" * (len(value) % 2)  # TIFF requires even offsets
    return head + struct.pack(">I", 0) + values
