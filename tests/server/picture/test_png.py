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
PIXELS = array_shapes(min_dims=2, max_dims=2, max_side=20).flatmap(
    lambda size: arrays(np.uint8, st.sampled_from([(*size, 3), (*size, 4)]))
)
KEYWORDS = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=20)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def decode(file):
    """The image in a file's bytes."""
    with Image.open(BytesIO(file)) as image:
        image.load()
        return image


def random_pixels(height=128, width=96, channels=4):
    return np.random.default_rng(3).integers(0, 256, (height, width, channels), np.uint8)


def read_chunks(file):
    """The type and content of every chunk, read without a library; a run of IDAT chunks counts once, without content."""
    chunks, offset = [], 8
    while offset < len(file):
        length, kind = struct.unpack(">I4s", file[offset : offset + 8])
        content = file[offset + 8 : offset + 8 + length]
        assert length <= 65536  # as in Pillow's files and so in NAI's
        if kind != b"IDAT" or chunks[-1][0] != "IDAT":
            chunks.append((kind.decode(), b"" if kind == b"IDAT" else content))
        offset += length + 12
    return chunks


@given(PIXELS, st.dictionaries(KEYWORDS, TEXTS, max_size=3))
def test_pillow_reads_back_every_pixel_and_text(pixels, fields):
    image = decode(encode_png(pixels, fields))
    assert np.array_equal(np.asarray(image), pixels)
    assert image.info == fields


@pytest.mark.parametrize(("channels", "color_type"), [(3, 2), (4, 6)])
def test_the_header_holds_size_and_channels(channels, color_type):
    chunks = read_chunks(encode_png(random_pixels(128, 96, channels), {}))
    assert chunks[0] == ("IHDR", struct.pack(">IIBBBBB", 96, 128, 8, color_type, 0, 0, 0))
    assert [kind for kind, _ in chunks[1:]] == ["IDAT", "IEND"]


def test_pixels_are_split_into_chunks_like_pillow_s():
    file = encode_png(random_pixels(256, 256), {})
    assert file.count(b"IDAT") > 1  # `read_chunks` asserts that none is too long
    assert np.array_equal(np.asarray(decode(file)), random_pixels(256, 256))
    assert read_chunks(file)[1:] == [("IDAT", b""), ("IEND", b"")]


def test_an_array_that_is_not_contiguous_is_encoded_correctly():
    rotated = random_pixels().transpose(1, 0, 2)[::-1]
    assert np.array_equal(np.asarray(decode(encode_png(rotated, {}))), rotated)


def test_text_stands_before_the_pixels_in_the_order_of_the_fields():
    chunks = read_chunks(encode_png(random_pixels(), FIELDS))
    assert [kind for kind, _ in chunks] == ["IHDR", *["tEXt"] * 8, "IDAT", "IEND"]
    names = [content.split(b"\0")[0].decode() for kind, content in chunks if kind == "tEXt"]
    assert names == list(FIELDS)


@pytest.mark.parametrize(
    ("prompt", "kind", "value"),
    [
        ("caf\u00e9\nau lait", "tEXt", b"Description\0caf\xe9\nau lait"),
        ("\u732b", "iTXt", b"Description\0\0\0\0\0\xe7\x8c\xab"),
    ],
)
def test_text_beyond_latin_1_becomes_an_international_chunk(prompt, kind, value):
    assert (kind, value) in read_chunks(encode_png(random_pixels(), {"Description": prompt}))


def test_naipng_reads_the_comment():
    file = BytesIO(encode_png(random_pixels(), FIELDS))  # a bug of naipng: it cannot read bytes
    assert naipng.read(file) == COMMENT


def test_sd_parsers_reads_the_text():
    metadata = ParserManager(eagerness=Eagerness.FAST).parse(BytesIO(encode_png(random_pixels(), FIELDS)))
    assert metadata is not None
    assert metadata.full_prompt == COMMENT["prompt"]
    assert metadata.full_negative_prompt == COMMENT["uc"]
    assert [model.hash for model in metadata.models] == ["00C0FFEE"]


@pytest.mark.skipif(not GENUINE, reason="no genuine NAI images next to this checkout")
@pytest.mark.parametrize("path", GENUINE, ids=lambda path: path.stem)
def test_a_genuine_image_encoded_again_has_the_same_chunks_and_pixels(path):
    genuine = path.read_bytes()
    pixels = np.asarray(decode(genuine))
    file = encode_png(pixels, inspect(genuine).text)
    assert read_chunks(file) == read_chunks(genuine)
    assert np.array_equal(np.asarray(decode(file)), pixels)
