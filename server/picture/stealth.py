"""The `stealth_pngcomp` layer: text in the lowest bit of the alpha channel, where NAI's readers look for it.

Bits run down the columns from the top left. Alpha is 254 for 0 and 255 for 1, and 255 after the end. The stream is a
15-byte magic, the payload's length in bits (uint32, big endian) and the payload, one gzip member.
"""

import gzip
import zlib
from typing import TypeAlias

import numpy as np

from pipelines.types import Pixels

Columns: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.uint8]]
"""The first columns of an image's alpha, (height, count); the alpha is 255 after them."""
MAGIC = b"stealth_pngcomp"
PLAIN_MAGIC = b"stealth_pnginfo"
"""Of A1111's extension without compression: the payload is the text itself."""
HEADER_BYTES = len(MAGIC) + 4
MAX_TEXT_BYTES = 1 << 22
"""Decompression limit against gzip bombs; real metadata is far smaller."""
SPARE_BITS = 32
"""Bits left at 1 after the payload. Readers take the next 32 bits as the length of a block that is not written here."""


def hide(text: str, height: int, width: int) -> Columns | None:
    """Return the columns of alpha that hold a text, or None if the image is too small for it."""
    return hide_packed(gzip.compress(text.encode(), 9, mtime=0), height, width)


def hide_packed(packed: bytes, height: int, width: int) -> Columns | None:
    """Like `hide`, for a text that is already gzipped."""
    stream = MAGIC + (8 * len(packed)).to_bytes(4, "big") + packed
    if 8 * len(stream) + SPARE_BITS > height * width:
        return None
    count = -(-8 * len(stream) // height)
    alpha = np.full(count * height, 255, np.uint8)
    alpha[: 8 * len(stream)] = np.unpackbits(np.frombuffer(stream, np.uint8)) + np.uint8(254)
    return alpha.reshape(count, height).T


def add_alpha(rgb: Pixels, columns: Columns) -> Pixels:
    """Return the image, or some of its rows, with an alpha that begins with these columns of the same rows."""
    rgba = _add_opaque_alpha(rgb)
    rgba[:, : columns.shape[1], 3] = columns
    return rgba


def _add_opaque_alpha(rgb: Pixels) -> Pixels:
    packed, count = np.ascontiguousarray(rgb), rgb.shape[0] * rgb.shape[1]
    # overlapping 4-byte words, each a pixel and the next byte: copying by channel takes half as long again
    words = np.ndarray(count - 1, "<u4", packed, strides=(3,))  # no byte follows the last pixel
    rgba = np.empty((*rgb.shape[:2], 4), np.uint8)
    written = rgba.reshape(-1).view("<u4")[:-1]
    written[:] = words
    written |= np.uint32(255 << 24)
    rgba[-1, -1] = (*rgb[-1, -1], 255)
    return rgba


def extract(rgba: Pixels) -> str | None:
    """Return the text in an image's alpha, or None if there is no readable text."""
    plain = _read_payload(rgba, PLAIN_MAGIC)
    if plain is not None:
        return plain.decode(errors="replace") if len(plain) <= MAX_TEXT_BYTES else None
    packed = extract_packed(rgba)
    if packed is None:
        return None
    decompressor = zlib.decompressobj(wbits=31)  # 31: gzip format
    try:
        text = decompressor.decompress(packed, MAX_TEXT_BYTES).decode()
    except (zlib.error, UnicodeDecodeError):
        return None
    return text if decompressor.eof else None


def extract_packed(rgba: Pixels) -> bytes | None:
    """Return the gzipped payload, or None if the magic is missing or the length does not fit the image."""
    return _read_payload(rgba, MAGIC)


def _read_payload(rgba: Pixels, magic: bytes) -> bytes | None:
    header = _read_stream(rgba, HEADER_BYTES)
    if header[: len(magic)] != magic:
        return None
    length = int.from_bytes(header[len(magic) :], "big")
    if length % 8 or 8 * HEADER_BYTES + length > rgba.shape[0] * rgba.shape[1]:
        return None
    return _read_stream(rgba, HEADER_BYTES + length // 8)[HEADER_BYTES:]


def _read_stream(rgba: Pixels, count: int) -> bytes:
    """Return the first `count` bytes; only the columns that hold them are read."""
    columns = -(-8 * count // rgba.shape[0])
    return np.packbits(rgba[:, :columns, 3].T.reshape(-1)[: 8 * count] & 1).tobytes()
