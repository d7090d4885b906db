"""Reading the chunks of a user's PNG.

A chunk with a wrong checksum is dropped if the pixels can do without it, as in browsers. Of an animation only the image
that viewers without animation show is read.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping

from server.picture.icc import describe_coding, describe_gamma
from server.picture.parts import (
    LARGEST_PROFILE,
    LONGEST_TEXT,
    MOST_PARTS,
    MOST_TEXTS,
    FileParts,
    Unpacker,
    UnreadableFile,
    decode_text,
)
from server.picture.png import SIGNATURE, build_chunk

PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS")
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
PROFILE_TEXTS = ("Raw profile type exif", "Raw profile type APP1")
"""Texts in which ImageMagick wrote EXIF in hexadecimal before PNG had a chunk for it."""


def read_png(data: bytes) -> FileParts:
    """Return the parts of a PNG file.

    Raises:
        UnreadableFile: a chunk that the pixels need is damaged or missing, or there are too many chunks.
    """
    chunks: dict[bytes, bytes] = {}
    texts: list[tuple[bytes, bytes]] = []
    image_data: list[memoryview] = []
    for kind, content in _iter_sound_chunks(data):
        if kind == b"IDAT":
            image_data.append(content)
        elif kind in TEXT_CHUNKS:
            texts.append((kind, bytes(content)))
            if len(texts) > MOST_TEXTS:
                raise UnreadableFile(f"more than {MOST_TEXTS} text chunks")
        else:
            chunks.setdefault(kind, bytes(content))
    if len(chunks.get(b"IHDR", b"")) != 13:
        raise UnreadableFile("a damaged PNG: it has no header")
    unpacker = Unpacker()
    fields = dict(filter(None, (_read_text(kind, content, unpacker) for kind, content in texts)))
    return FileParts(
        _build_pixel_file(chunks, image_data),
        fields,
        chunks.get(b"eXIf") or _read_hex_exif(fields),
        _read_profile(chunks, unpacker),
    )


def _iter_sound_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield kind and content of each chunk before IEND whose checksum is right."""
    position = len(SIGNATURE)
    for _ in range(MOST_PARTS):
        kind = data[position + 4 : position + 8]
        if len(kind) < 4 or not kind.isalpha() or kind == b"IEND":
            return
        end = position + 8 + int.from_bytes(data[position : position + 4])
        content = memoryview(data)[position + 8 : end]
        if zlib.crc32(content, zlib.crc32(kind)).to_bytes(4) == data[end : end + 4]:
            yield kind, content
        elif kind[:1].isupper():
            raise UnreadableFile(_describe_damage(kind, is_cut=end + 4 > len(data)))
        position = end + 4
    raise UnreadableFile(f"a PNG of more than {MOST_PARTS} chunks")


def _describe_damage(kind: bytes, is_cut: bool) -> str:
    if is_cut:
        return "a broken PNG; it could not be read to its end"
    return f"a damaged PNG: the checksum of its {kind.decode()} chunk is wrong; save or download it again"


def _build_pixel_file(chunks: Mapping[bytes, bytes], image_data: Iterable[memoryview]) -> bytes:
    """Return a PNG of the chunks that the pixels need, with the color of tRNS as Pillow reads it."""
    needed = {kind: chunks[kind] for kind in PIXEL_CHUNKS if kind in chunks}
    if b"tRNS" in needed:
        depth, color_type = chunks[b"IHDR"][8:10]
        needed[b"tRNS"] = _scale_transparency(needed[b"tRNS"], depth, color_type)
    parts: list[bytes | memoryview] = [SIGNATURE]
    for kind, content in (*needed.items(), *((b"IDAT", piece) for piece in image_data), (b"IEND", b"")):
        parts += build_chunk(kind, content)
    return b"".join(parts)


def _scale_transparency(content: bytes, depth: int, color_type: int) -> bytes:
    """Return the transparent color in the values that Pillow decodes pixels to.

    It scales 2 and 4 bits of gray to 8 and cuts 16 bits of RGB to 8, but not this color. 16 bits of gray stay.
    """
    if color_type not in (0, 2) or len(content) < (2 if color_type == 0 else 6):
        return content
    values = struct.unpack_from(">H" if color_type == 0 else ">HHH", content)
    if depth in (2, 4, 8):
        values = [value % (1 << depth) * (255 // ((1 << depth) - 1)) for value in values]
    elif depth == 16 and color_type == 2:
        values = [value >> 8 for value in values]
    return struct.pack(f">{len(values)}H", *values)


def _read_text(kind: bytes, content: bytes, unpacker: Unpacker) -> tuple[str, str] | None:
    """Return the keyword and the text of a text chunk, or None if it is malformed or too long."""
    keyword, _, text = content.partition(b"\0")
    is_packed = kind == b"zTXt"
    if kind == b"zTXt":
        text = text[1:]  # the method, of which there is one
    elif kind == b"iTXt":
        is_packed, (_, _, text) = text[:1] == b"\1", _split(text[2:])
    unpacked = unpacker.unpack(text, LONGEST_TEXT) if is_packed else text
    if not keyword or unpacked is None or len(unpacked) > LONGEST_TEXT:
        return None
    return keyword.decode("latin-1"), decode_text(unpacked)


def _split(content: bytes) -> tuple[bytes, bytes, bytes]:
    """Split the language, the translated keyword and the text of an iTXt chunk."""
    language, _, rest = content.partition(b"\0")
    translated, _, text = rest.partition(b"\0")
    return language, translated, text


def _read_hex_exif(texts: dict[str, str]) -> bytes:
    text = next((texts[name] for name in PROFILE_TEXTS if name in texts), "")
    try:
        return bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError:
        return b""


def _read_profile(chunks: dict[bytes, bytes], unpacker: Unpacker) -> bytes:
    """Return an ICC profile of the first of cICP, iCCP, sRGB, and gAMA with cHRM; empty if the colors are sRGB."""
    is_gray = chunks[b"IHDR"][9:10] in (b"\0", b"\4")
    if coded := describe_coding(chunks.get(b"cICP", b""), is_gray):
        return coded
    if b"iCCP" in chunks:
        _, _, packed = chunks[b"iCCP"].partition(b"\0")
        return unpacker.unpack(packed[1:], LARGEST_PROFILE) or b""
    gamma, chromaticities = chunks.get(b"gAMA", b""), chunks.get(b"cHRM", b"")
    if b"sRGB" in chunks or not (gamma or chromaticities):
        return b""
    return describe_gamma(gamma, chromaticities, is_gray)
