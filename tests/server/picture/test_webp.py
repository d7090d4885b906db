import json
import struct
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from server.errors import Rejected
from server.picture.comment import build_text_fields
from server.picture.inspection import inspect
from server.picture.webp import LONGEST_SIDE, build_exif, encode_webp

FIELDS = build_text_fields({"prompt": "caf\u00e9 \u732b", "uc": ""}, "00C0FFEE", 4.25, "the key")
PICTURES = array_shapes(min_dims=2, max_dims=2, max_side=20).flatmap(
    lambda size: arrays(np.uint8, (*size, 3))
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def picture(height=64, width=48, channels=4):
    return np.random.default_rng(3).integers(0, 256, (height, width, channels), np.uint8)


def opened(file):
    """The picture in a file's bytes."""
    with Image.open(BytesIO(file)) as found:
        found.load()
        return found


def chunks(file):
    """Every chunk's type and content, read without any library (RFC 9649, 2.3)."""
    assert (file[:4], file[8:12]) == (b"RIFF", b"WEBP")
    found, at = {}, 12
    while at < len(file):
        kind, length = struct.unpack("<4sI", file[at : at + 8])
        found[kind] = file[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    return found


@pytest.mark.parametrize("channels", [3, 4])
def test_every_pixel_survives_even_where_nothing_is_seen_of_it(channels):
    pixels = picture(channels=channels)
    if channels == 4:
        pixels[:32, :, 3] = 0
    assert np.array_equal(np.asarray(opened(encode_webp(pixels, FIELDS))), pixels)


@given(PICTURES)
def test_pillow_reads_back_every_pixel(pixels):
    assert np.array_equal(np.asarray(opened(encode_webp(pixels, {})).convert("RGB")), pixels)


def test_chunks_are_those_of_nai():
    found = chunks(encode_webp(picture(), FIELDS))
    assert list(found) == [b"VP8X", b"VP8L", b"EXIF"]
    assert found[b"VP8X"][0] == 0x18  # alpha and EXIF
    assert found[b"EXIF"].startswith(b"MM\0*")


def test_without_fields_there_is_no_exif():
    assert b"EXIF" not in chunks(encode_webp(picture(), {}))


def test_any_viewer_sees_title_prompt_and_source():
    exif = opened(encode_webp(picture(), FIELDS)).getexif()
    assert (exif[0x010D], exif[0x0131]) == (FIELDS["Title"], FIELDS["Source"])
    assert exif[0x010E].encode("latin-1").decode() == FIELDS["Description"]  # EXIF names no encoding


def test_the_user_comment_holds_all_fields_in_ascii():
    marked = opened(encode_webp(picture(), FIELDS)).getexif().get_ifd(0x8769)[0x9286]
    assert marked[:8] == b"ASCII\0\0\0"
    told = json.loads(marked[8:].decode("ascii"))
    assert told == FIELDS
    assert list(told) == sorted(FIELDS)


@given(st.fixed_dictionaries({"Title": TEXTS, "Description": TEXTS, "Source": TEXTS, "Comment": TEXTS}))
def test_whatever_the_fields_say_pillow_reads_it(fields):
    exif = Image.Exif()
    exif.load(build_exif(fields))
    assert json.loads(exif.get_ifd(0x8769)[0x9286][8:]) == fields


def test_our_own_reader_reads_the_fields():
    assert inspect(encode_webp(picture(), FIELDS)).text == FIELDS


@pytest.mark.parametrize("size", [(LONGEST_SIDE + 1, 1), (1, LONGEST_SIDE + 1)])
def test_a_side_that_webp_cannot_hold_is_refused(size):
    with pytest.raises(Rejected, match=r"image_format: webp cannot hold .*16383.*png"):
        encode_webp(picture(*size), FIELDS)


def test_the_longest_side_is_written():
    assert opened(encode_webp(picture(LONGEST_SIDE, 1), {})).height == LONGEST_SIDE
