"""PNG encoding with text chunks, in NAI's layout and about twenty times as fast as Pillow's defaults.

Most of the time of a PNG encoder goes into choosing filters and compressing. One filter for all rows (UP, which suits
drawn areas) and ISA-L's level 1 make a file a fifth larger than Pillow's defaults do (benchmarks/edges.py).
"""

import struct
from collections.abc import Mapping

import numpy as np
from isal import isal_zlib

from pipelines.types import Pixels

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOR_TYPES = {3: 2, 4: 6}
IDAT_BYTES = 1 << 16
"""Compressed bytes in one IDAT chunk, as in Pillow's files and so in NAI's."""


def encode_png(pixels: Pixels, fields: Mapping[str, str]) -> bytes:
    """Encode an image (height, width, 3 or 4) as an 8-bit PNG without interlacing.

    Each field becomes a tEXt chunk, or iTXt if it does not fit into Latin-1. The values must not contain NUL or lone
    surrogates.
    """
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, COLOR_TYPES[channels], 0, 0, 0)
    compressed = memoryview(isal_zlib.compress(_filter_rows(pixels).data, 1))  # pyright: ignore[reportUnknownMemberType]
    parts: list[bytes | memoryview] = [SIGNATURE, *build_chunk(b"IHDR", header)]
    for key, value in fields.items():
        parts += _build_text_chunk(key, value)
    for start in range(0, len(compressed), IDAT_BYTES):
        parts += build_chunk(b"IDAT", compressed[start : start + IDAT_BYTES])
    return b"".join([*parts, *build_chunk(b"IEND", b"")])


def _filter_rows(pixels: Pixels) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Return each row as its filter byte and the differences to the row above."""
    rows = pixels.reshape(len(pixels), -1)
    filtered = np.empty((rows.shape[0], 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = 2  # UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    return filtered


def _build_text_chunk(key: str, value: str) -> tuple[bytes | memoryview, ...]:
    try:
        return build_chunk(b"tEXt", key.encode("latin-1") + b"\0" + value.encode("latin-1"))
    except UnicodeEncodeError:
        return build_chunk(b"iTXt", key.encode("latin-1") + b"\0\0\0\0\0" + value.encode())


def build_chunk(kind: bytes, content: bytes | memoryview) -> tuple[bytes | memoryview, ...]:
    """Return a chunk in parts: length and kind, content, checksum."""
    checksum = isal_zlib.crc32(content, isal_zlib.crc32(kind))  # pyright: ignore[reportUnknownMemberType]
    return struct.pack(">I", len(content)) + kind, content, struct.pack(">I", checksum)
