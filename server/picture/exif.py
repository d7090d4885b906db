"""Reading the few EXIF tags that matter here: the orientation, the description and the user comment.

A hostile file can list tens of thousands of tags that all point to the same megabytes. So only these are looked at.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from server.picture.parts import LONGEST_TEXT, decode_text
from server.picture.webp import EXIF_DIRECTORY, IMAGE_DESCRIPTION, USER_COMMENT

ORIENTATION = 0x0112
WANTED = (ORIENTATION, IMAGE_DESCRIPTION, EXIF_DIRECTORY, USER_COMMENT)
VALUE_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
"""Bytes of a value of each TIFF type; the others have one."""
ORDERS = {b"II": "<", b"MM": ">"}


@dataclass(frozen=True, slots=True)
class Exif:
    """The tags of an image; the defaults stand for those that are missing or broken."""

    orientation: int = 1
    description: str = ""
    user_comment: str = ""


def read_exif(data: bytes) -> Exif:
    """Read the tags in a TIFF file, with or without the `Exif` prefix; broken ones count as missing."""
    tiff = data.removeprefix(b"Exif\0\0")
    order = ORDERS.get(tiff[:2])
    if order is None:
        return Exif()
    main = _read_directory(tiff, order, _read_number(tiff[4:8], order))
    inner = _read_directory(tiff, order, _read_number(main.get(EXIF_DIRECTORY, b""), order))
    comment = inner.get(USER_COMMENT) or main.get(USER_COMMENT, b"")
    return Exif(
        _read_number(main.get(ORIENTATION, b""), order) or 1,
        _decode(main.get(IMAGE_DESCRIPTION, b""), order),
        _decode_user_comment(comment, order),
    )


def _read_number(value: bytes, order: str) -> int:
    return int.from_bytes(value, "little" if order == "<" else "big")


def _read_directory(tiff: bytes, order: str, start: int) -> Mapping[int, bytes]:
    """Return the wanted values of the directory at an offset, as bytes; the first of each if a tag is repeated."""
    values: dict[int, bytes] = {}
    if not 8 <= start <= len(tiff) - 2:
        return values
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    for entry in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind, number, offset = struct.unpack_from(f"{order}HHII", tiff, entry)
        size = number * VALUE_BYTES.get(kind, 1)
        if tag in WANTED and tag not in values and size <= LONGEST_TEXT:
            values[tag] = tiff[entry + 8 : entry + 8 + size] if size <= 4 else tiff[offset : offset + size]
    return values


def _decode_user_comment(value: bytes, order: str) -> str:
    """Decode a user comment after the eight bytes that name its encoding, if it has them.

    The name is often wrong or missing, so it decides for Japanese (JIS) only.
    """
    name = value[:8].upper().rstrip(b"\0 ")
    if name == b"JIS":
        return value[8:].decode("iso2022_jp", "replace").strip("\0 ")
    return _decode(value[8:] if name in (b"ASCII", b"UNICODE", b"") else value, order)


def _decode(value: bytes, order: str) -> str:
    """Decode a text in UTF-16 of either byte order, UTF-8 or Latin-1.

    The prompts and their JSON have ASCII letters, and in UTF-16 the other byte of these is 0.
    """
    value = value.removeprefix(b"\xef\xbb\xbf")
    text = value.removeprefix(bytes(4))  # NAI's files have four NULs before a description
    even, odd = text[::2].count(0), text[1::2].count(0)
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
        decoded = text.decode("utf-16", "replace")
    elif max(even, odd) > len(text) // 8:
        little = odd > even or (odd == even and order == "<")
        decoded = text.decode("utf-16-le" if little else "utf-16-be", "replace")
    else:
        decoded = decode_text(text)
    return decoded.strip("\0 ")
