"""The user comment in every spelling, the orientation, and hostile directories."""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import make_exif

from server.picture.exif import Exif, read_exif

JSON = json.dumps({"Comment": '{"prompt": "1girl"}', "Description": "1girl"})
JAPANESE = json.dumps({"Description": "1girl, 猫耳, 笑顔", "Comment": "{}"}, ensure_ascii=False)
SPELLINGS = {
    "ASCII": lambda text: b"ASCII\0\0\0" + text.encode(),
    "UNICODE little": lambda text: b"UNICODE\0" + text.encode("utf-16-le"),
    "UNICODE big": lambda text: b"UNICODE\0" + text.encode("utf-16-be"),
    "UNICODE with a byte order mark": lambda text: b"UNICODE\0" + text.encode("utf-16"),
    "UNICODE that is UTF-8": lambda text: b"UNICODE\0" + text.encode(),
    "lower case": lambda text: b"Unicode\0" + text.encode("utf-16-be"),
    "JIS": lambda text: b"JIS\0\0\0\0\0" + text.encode("iso2022_jp"),
    "undefined": lambda text: bytes(8) + text.encode(),
    "undefined UTF-16": lambda text: bytes(8) + text.encode("utf-16-le"),
    "blanks": lambda text: b" " * 8 + text.encode(),
    "no header": lambda text: text.encode(),
    "no header, a byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "a NUL at the end": lambda text: b"ASCII\0\0\0" + text.encode() + b"\0",
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("text", [JSON, JAPANESE], ids=["English", "Japanese"])
@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_a_user_comment_is_read_in_every_spelling(spell, text, order):
    assert read_exif(make_exif(order, spell(text))).user_comment == text
    assert read_exif(b"Exif\0\0" + make_exif(order, spell(text))).user_comment == text


@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_and_description_are_read(order):
    assert read_exif(make_exif(order, b"", 6, bytes(4) + "1girl, 猫\0".encode())) == Exif(6, "1girl, 猫", "")


@given(st.binary(max_size=300))
def test_any_bytes_are_read(data):
    read_exif(data)
    read_exif(b"II*\0\x08\0\0\0" + data)
    read_exif(make_exif("<", b"ASCII\0\0\0" + data))


def test_a_directory_of_tags_that_share_megabytes_is_not_copied():
    tags = b"".join(struct.pack("<HHII", tag, 7, 600_000, 8) for tag in range(40_000, 65_000))
    assert read_exif(b"II*\0\x08\0\0\0" + struct.pack("<H", 25_000) + tags + bytes(400_000)) == Exif()


def test_a_directory_that_names_itself_ends():
    assert read_exif(b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 0x8769, 4, 1, 8) + bytes(4)) == Exif()
