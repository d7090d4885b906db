"""Text in the lowest bit of a picture's alpha: the `stealth_pngcomp` layer that NAI's readers look for.

The bits run down the columns from the top left; alpha is 254 for 0, 255 for 1, and 255 behind the end. The
stream is a 15-byte mark, the payload's length in bits (uint32, big endian), and the payload, a gzip member.
"""

import gzip
import zlib

import numpy as np

from pipelines.types import Pixels

MARK = b"stealth_pngcomp"
HEADER = len(MARK) + 4
LONGEST = 1 << 22
"""More text than any picture's honest metadata; what unpacks to more is somebody's joke."""
SPARE = 32
"""Bits left at 1 behind the payload: readers take the 32 bits there for the length of a block we do not write."""


def embed(rgb: Pixels, text: str) -> "Pixels | None":
    """The picture with a text in its alpha, or None when the picture is too small for it."""
    return embed_packed(rgb, gzip.compress(text.encode(), 9, mtime=0))


def embed_packed(rgb: Pixels, packed: bytes) -> "Pixels | None":
    """As `embed`, for a text that is compressed already."""
    stream = MARK + (8 * len(packed)).to_bytes(4, "big") + packed
    height, width = rgb.shape[:2]
    if 8 * len(stream) + SPARE > height * width:
        return None
    rgba = add_opaque_alpha(rgb)
    bits = np.unpackbits(np.frombuffer(stream, np.uint8))
    columns = -(-len(bits) // height)
    padded = np.pad(bits, (0, columns * height - len(bits)), constant_values=1)
    rgba[:, :columns, 3] = 254 + padded.reshape(columns, height).T
    return rgba


def add_opaque_alpha(rgb: Pixels) -> Pixels:
    """The picture with a full alpha."""
    packed, count = np.ascontiguousarray(rgb), rgb.shape[0] * rgb.shape[1]
    # read as words that overlap, a pixel and one byte more; channel by channel takes half as long again
    words = np.ndarray(count - 1, "<u4", packed, strides=(3,))  # the last pixel has no byte more
    rgba = np.empty((*rgb.shape[:2], 4), np.uint8)
    np.bitwise_or(words, 255 << 24, out=rgba.reshape(-1).view("<u4")[:-1])
    rgba[-1, -1] = (*rgb[-1, -1], 255)
    return rgba


def extract(rgba: Pixels) -> str | None:
    """The text in a picture's alpha, or None when there is no readable one."""
    packed = extract_packed(rgba)
    if packed is None:
        return None
    unpacking = zlib.decompressobj(wbits=31)  # a gzip member
    try:
        text = unpacking.decompress(packed, LONGEST).decode()
    except (zlib.error, UnicodeDecodeError):
        return None
    return text if unpacking.eof else None


def extract_packed(rgba: Pixels) -> bytes | None:
    """The compressed payload, or None when the mark is not there or the length is not the picture's."""
    header = _stream(rgba, HEADER)
    if header[: len(MARK)] != MARK:
        return None
    length = int.from_bytes(header[len(MARK) :], "big")
    if length % 8 or 8 * HEADER + length > rgba.shape[0] * rgba.shape[1]:
        return None
    return _stream(rgba, HEADER + length // 8)[HEADER:]


def _stream(rgba: Pixels, count: int) -> bytes:
    """The first `count` bytes, touching only the columns that hold them."""
    columns = -(-8 * count // rgba.shape[0])
    bits = rgba[:, :columns, 3].T.reshape(-1)[: 8 * count] & 1
    return np.packbits(bits).tobytes()
