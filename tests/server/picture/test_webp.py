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
from server.picture.webp import MAX_SIDE, build_exif, encode_webp

FIELDS = build_text_fields({"prompt": "caf\u00e9 \u732b", "uc": ""}, "00C0FFEE", 4.25, "the key")
PIXELS = array_shapes(min_dims=2, max_dims=2, max_side=20).flatmap(lambda size: arrays(np.uint8, (*size, 3)))
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def random_pixels(height=64, width=48, channels=4):
    return np.random.default_rng(3).integers(0, 256, (height, width, channels), np.uint8)


def decode(file):
    """The image in a file's bytes."""
    with Image.open(BytesIO(file)) as image:
        image.load()
        return image


def read_chunks(file):
    """The content of every chunk by its type, read without a library (RFC 9649, 2.3)."""
    assert (file[:4], file[8:12]) == (b"RIFF", b"WEBP")
    chunks, offset = {}, 12
    while offset < len(file):
        kind, length = struct.unpack("<4sI", file[offset : offset + 8])
        chunks[kind] = file[offset + 8 : offset + 8 + length]
        offset += 8 + length + length % 2
    return chunks


@pytest.mark.parametrize("channels", [3, 4])
def test_every_pixel_survives_even_under_zero_alpha(channels):
    pixels = random_pixels(channels=channels)
    if channels == 4:
        pixels[:32, :, 3] = 0
    assert np.array_equal(np.asarray(decode(encode_webp(pixels, FIELDS))), pixels)


@given(PIXELS)
def test_pillow_reads_back_every_pixel(pixels):
    assert np.array_equal(np.asarray(decode(encode_webp(pixels, {})).convert("RGB")), pixels)


def test_chunks_are_those_of_nai():
    chunks = read_chunks(encode_webp(random_pixels(), FIELDS))
    assert list(chunks) == [b"VP8X", b"VP8L", b"EXIF"]
    assert chunks[b"VP8X"][0] == 0x18  # alpha and EXIF
    assert chunks[b"EXIF"].startswith(b"MM\0*")


def test_without_fields_there_is_no_exif():
    assert b"EXIF" not in read_chunks(encode_webp(random_pixels(), {}))


def test_exif_tags_hold_title_prompt_and_source_for_any_viewer():
    exif = decode(encode_webp(random_pixels(), FIELDS)).getexif()
    assert (exif[0x010D], exif[0x0131]) == (FIELDS["Title"], FIELDS["Source"])
    assert exif[0x010E].encode("latin-1").decode() == FIELDS["Description"]  # EXIF names no encoding


def test_the_user_comment_holds_all_fields_in_ascii():
    user_comment = decode(encode_webp(random_pixels(), FIELDS)).getexif().get_ifd(0x8769)[0x9286]
    assert user_comment[:8] == b"ASCII\0\0\0"
    fields = json.loads(user_comment[8:].decode("ascii"))
    assert fields == FIELDS
    assert list(fields) == sorted(FIELDS)


@given(st.fixed_dictionaries({"Title": TEXTS, "Description": TEXTS, "Source": TEXTS, "Comment": TEXTS}))
def test_pillow_reads_back_any_fields(fields):
    exif = Image.Exif()
    exif.load(build_exif(fields))
    assert json.loads(exif.get_ifd(0x8769)[0x9286][8:]) == fields


def test_inspect_reads_the_fields():
    assert inspect(encode_webp(random_pixels(), FIELDS)).text == FIELDS


@pytest.mark.parametrize("size", [(MAX_SIDE + 1, 1), (1, MAX_SIDE + 1)])
def test_a_side_too_long_for_webp_is_rejected(size):
    with pytest.raises(Rejected, match=r"image_format: webp cannot hold .*16383.*png"):
        encode_webp(random_pixels(*size), FIELDS)


def test_the_longest_allowed_side_is_written():
    assert decode(encode_webp(random_pixels(MAX_SIDE, 1), {})).height == MAX_SIDE
