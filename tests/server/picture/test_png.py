import struct
from io import BytesIO

import naipng
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from paths import SAMPLES
from PIL import Image
from sd_parsers import ParserManager
from sd_parsers.extractors import Eagerness

from server.picture.comment import build_text_fields
from server.picture.inspection import inspect
from server.picture.png import encode_png

GENUINE = sorted(SAMPLES.glob("*.png"))
COMMENT: dict[str, object] = {
    "prompt": "1girl, {best quality}",
    "steps": 28,
    "seed": 7,
    "scale": 5.0,
    "sampler": "k_euler",
    "uc": "lowres",
}
FIELDS = build_text_fields(COMMENT, "00C0FFEE", 4.25, "the key")
PICTURES = array_shapes(min_dims=2, max_dims=2, max_side=20).flatmap(
    lambda size: arrays(np.uint8, st.sampled_from([(*size, 3), (*size, 4)]))
)
KEYWORDS = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=20)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def opened(file):
    """The picture in a file's bytes."""
    with Image.open(BytesIO(file)) as found:
        found.load()
        return found


def picture(height=128, width=96, channels=4):
    return np.random.default_rng(3).integers(0, 256, (height, width, channels), np.uint8)


def chunks(file):
    """Every chunk's type and content, runs of IDAT told once: read without any library."""
    found, at = [], 8
    while at < len(file):
        length, kind = struct.unpack(">I4s", file[at : at + 8])
        content = file[at + 8 : at + 8 + length]
        assert length <= 65536  # as Pillow cuts, and so NAI
        if kind != b"IDAT" or found[-1][0] != "IDAT":
            found.append((kind.decode(), b"" if kind == b"IDAT" else content))
        at += length + 12
    return found


@given(PICTURES, st.dictionaries(KEYWORDS, TEXTS, max_size=3))
def test_pillow_reads_back_every_pixel_and_text(pixels, fields):
    found = opened(encode_png(pixels, fields))
    assert np.array_equal(np.asarray(found), pixels)
    assert found.info == fields


@pytest.mark.parametrize(("channels", "colour_type"), [(3, 2), (4, 6)])
def test_the_header_tells_size_and_channels(channels, colour_type):
    found = chunks(encode_png(picture(128, 96, channels), {}))
    assert found[0] == ("IHDR", struct.pack(">IIBBBBB", 96, 128, 8, colour_type, 0, 0, 0))
    assert [kind for kind, _ in found[1:]] == ["IDAT", "IEND"]


def test_pixels_are_packed_in_pieces_as_pillow_s_are():
    file = encode_png(picture(256, 256), {})
    assert file.count(b"IDAT") > 1  # `chunks` sees that none is too long
    assert np.array_equal(np.asarray(opened(file)), picture(256, 256))
    assert chunks(file)[1:] == [("IDAT", b""), ("IEND", b"")]


def test_a_picture_whose_rows_do_not_lie_together_is_written_as_it_looks():
    turned = picture().transpose(1, 0, 2)[::-1]
    assert np.array_equal(np.asarray(opened(encode_png(turned, {}))), turned)


def test_text_stands_before_the_pixels_in_the_order_given():
    found = chunks(encode_png(picture(), FIELDS))
    assert [kind for kind, _ in found] == ["IHDR", *["tEXt"] * 8, "IDAT", "IEND"]
    names = [content.split(b"\0")[0].decode() for kind, content in found if kind == "tEXt"]
    assert names == list(FIELDS)


@pytest.mark.parametrize(
    ("prompt", "kind", "value"),
    [
        ("caf\u00e9\nau lait", "tEXt", b"Description\0caf\xe9\nau lait"),
        ("\u732b", "iTXt", b"Description\0\0\0\0\0\xe7\x8c\xab"),
    ],
)
def test_text_beyond_latin_1_becomes_an_international_chunk(prompt, kind, value):
    assert (kind, value) in chunks(encode_png(picture(), {"Description": prompt}))


def test_naipng_reads_the_comment():
    assert naipng.read(BytesIO(encode_png(picture(), FIELDS))) == COMMENT  # it cannot read bytes: its own bug


def test_sd_parsers_reads_the_text():
    found = ParserManager(eagerness=Eagerness.FAST).parse(BytesIO(encode_png(picture(), FIELDS)))
    assert found is not None
    assert found.full_prompt == COMMENT["prompt"]
    assert found.full_negative_prompt == COMMENT["uc"]
    assert [model.hash for model in found.models] == ["00C0FFEE"]


@pytest.mark.skipif(not GENUINE, reason="the genuine pictures are not beside this checkout")
@pytest.mark.parametrize("path", GENUINE, ids=lambda path: path.stem)
def test_a_genuine_picture_encoded_again_has_the_same_chunks_and_pixels(path):
    genuine = path.read_bytes()
    pixels = np.asarray(opened(genuine))
    file = encode_png(pixels, inspect(genuine).text)
    assert chunks(file) == chunks(genuine)
    assert np.array_equal(np.asarray(opened(file)), pixels)
