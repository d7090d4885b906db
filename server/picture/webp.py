"""A picture and its text fields as a lossless WebP, the fields in EXIF where NAI's WebPs have them."""

import json
import struct
from collections.abc import Mapping
from io import BytesIO

from PIL import Image

from pipelines.types import Pixels
from server.errors import Rejected

LONGEST_SIDE = 16383
"""Pixels; a WebP cannot be wider or higher."""
TEXT, LONG, UNDEFINED = 2, 4, 7
DOCUMENT_NAME, IMAGE_DESCRIPTION, SOFTWARE, EXIF_DIRECTORY = 0x010D, 0x010E, 0x0131, 0x8769
USER_COMMENT = 0x9286
ASCII = b"ASCII\0\0\0"
"""The 8 bytes that say how the user comment behind them is written."""


def encode_webp(pixels: Pixels, fields: Mapping[str, str]) -> bytes:
    """A WebP that gives back every pixel as it is.

    Args:
        pixels: height, width and 3 or 4 channels.
        fields: what goes into EXIF; none of it when empty.

    Raises:
        Rejected: a side is too long for WebP.
    """
    height, width = pixels.shape[:2]
    check_webp_size("webp", width, height)
    file = BytesIO()
    exif = build_exif(fields) if fields else b""
    # quality is effort here; more of it costs five times as long and saves nothing on drawings
    Image.fromarray(pixels).save(file, "WEBP", lossless=True, exact=True, method=0, quality=0, exif=exif)
    return file.getvalue()


def check_webp_size(
    image_format: str, width: int, height: int, field: str = "parameters.image_format"
) -> None:
    """Refuse a WebP of more than LONGEST_SIDE.

    Args:
        field: which names the format in the request.
    """
    if image_format == "webp" and max(height, width) > LONGEST_SIDE:
        reason = f"webp cannot hold {width}x{height}; sides are at most {LONGEST_SIDE}, or ask for png"
        raise Rejected(field, reason)


def build_exif(fields: Mapping[str, str]) -> bytes:
    """The fields as a big-endian TIFF without the `Exif` mark: three for any viewer, all in the user comment."""
    everything = json.dumps(dict(fields), separators=(",", ":"), sort_keys=True).encode()
    inner = {USER_COMMENT: (UNDEFINED, ASCII + everything)}

    def outer(pointer: int) -> bytes:
        return _directory(
            {
                DOCUMENT_NAME: (TEXT, fields["Title"].encode() + b"\0"),
                IMAGE_DESCRIPTION: (TEXT, fields["Description"].encode() + b"\0"),
                SOFTWARE: (TEXT, fields["Source"].encode() + b"\0"),
                EXIF_DIRECTORY: (LONG, struct.pack(">I", pointer)),
            },
            start=8,
        )

    behind = 8 + len(outer(0))
    return struct.pack(">2sHI", b"MM", 42, 8) + outer(behind) + _directory(inner, behind)


def _directory(entries: Mapping[int, tuple[int, bytes]], start: int) -> bytes:
    """A TIFF directory and the values that do not fit into it, as it stands at `start`."""
    head, values = struct.pack(">H", len(entries)), b""
    behind = start + 2 + 12 * len(entries) + 4
    for tag, (kind, value) in sorted(entries.items()):
        count = len(value) // 4 if kind == LONG else len(value)
        head += struct.pack(">HHI", tag, kind, count)
        if len(value) <= 4:
            head += value.ljust(4, b"\0")
        else:
            head += struct.pack(">I", behind + len(values))
            values += value + b"\0" * (len(value) % 2)  # offsets are even
    return head + struct.pack(">I", 0) + values
