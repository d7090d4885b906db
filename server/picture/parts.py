"""The parts of a user's image file: pixels, texts, EXIF and color profile.

Only the pixels reach Pillow, in a file written from them alone. So no text, profile or EXIF of another program can make
a sound picture unreadable, and none is unpacked beyond a limit.
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

LONGEST_TEXT = 1 << 20
LARGEST_PROFILE = 1 << 22
"""Bytes, unpacked; profiles for printing have 0.5 to 3 MB."""
PACKED_LIMIT = 1 << 26
"""Bytes to which all packed texts and profiles of a file may unpack together."""
MOST_PARTS = 100_000
"""Chunks of a PNG or segments of a JPEG; each takes some microseconds."""
MOST_TEXTS = 1000
STEP = 1 << 18


class UnreadableFile(ValueError):
    """A file is damaged or takes too much to read; the text says how."""


@dataclass(frozen=True, slots=True)
class FileParts:
    """What an image file holds.

    Attributes:
        pixels: a file with the same pixels and nothing else.
        texts: the text chunks or comments, by keyword.
        exif: a TIFF file, or empty.
        profile: an ICC profile, or empty.
    """

    pixels: bytes = field(repr=False)
    texts: Mapping[str, str] = field(default_factory=dict[str, str])
    exif: bytes = b""
    profile: bytes = b""


@dataclass(slots=True)
class Unpacker:
    """Decompresses the packed parts of one file, `left` bytes in all."""

    left: int = PACKED_LIMIT

    def unpack(self, packed: bytes, limit: int) -> bytes | None:
        """Return the content, or None if it is broken or longer than `limit`.

        Raises:
            UnreadableFile: all parts together unpack to more than PACKED_LIMIT.
        """
        content, size = bytearray(), 0
        try:
            for piece in _decompress(packed):
                size += len(piece)
                if size > self.left:
                    raise UnreadableFile(
                        f"texts or profiles that unpack to more than {PACKED_LIMIT} bytes; save it without"
                    )
                if size <= limit:
                    content += piece
        except zlib.error:
            return None
        self.left -= size
        return bytes(content) if size <= limit else None


def _decompress(packed: bytes) -> Iterator[bytes]:
    """Yield the content of a zlib stream in pieces of at most STEP bytes."""
    stream = zlib.decompressobj()
    for start in range(0, len(packed), STEP):
        rest = packed[start : start + STEP]
        while rest and not stream.eof:
            yield stream.decompress(rest, STEP)
            rest = stream.unconsumed_tail


def decode_text(raw: bytes) -> str:
    """Decode a text whose encoding is not known: UTF-8 if it is valid UTF-8, else Latin-1."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
