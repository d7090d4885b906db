import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import embed
from paths import SAMPLES
from PIL import Image

from server.picture.stealth import (
    MAGIC,
    MAX_TEXT_BYTES,
    SPARE_BITS,
    add_alpha,
    extract,
    extract_packed,
    hide_packed,
)

GENUINE = sorted(SAMPLES.glob("*.png"))


def random_pixels(height, width):
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8)


def read_bits(rgba):
    """The layer's bits down the columns, read pixel by pixel."""
    height, width = rgba.shape[:2]
    return [int(rgba[n % height, n // height, 3]) & 1 for n in range(height * width)]


def pack_bits(bits):
    return bytes(int("".join(map(str, bits[n : n + 8])), 2) for n in range(0, len(bits) // 8 * 8, 8))


@pytest.mark.parametrize("size", [(64, 96), (101, 77), (1, 4000), (4000, 1), (1216, 832)])
def test_extract_returns_the_embedded_text(size):
    text = '{"Description": "caf\u00e9 \u732b \\n"}'
    rgba = embed(random_pixels(*size), text)
    assert rgba is not None
    assert extract(rgba) == text
    assert np.array_equal(rgba[..., :3], random_pixels(*size))


@given(st.text(), st.integers(1, 90), st.integers(1, 90))
def test_a_text_is_extracted_or_too_long_for_its_image(text, height, width):
    rgba = embed(random_pixels(height, width), text)
    capacity = height * width - 8 * (len(MAGIC) + 4) - SPARE_BITS
    assert (rgba is None) is (8 * len(gzip.compress(text.encode(), 9, mtime=0)) > capacity)
    assert rgba is None or extract(rgba) == text


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 1), (5, 7)])
@pytest.mark.parametrize("step", [1, 2])
def test_an_opaque_alpha_keeps_the_colors(size, step):
    rgb = random_pixels(size[0], size[1] * step)[:, ::step]
    rgba = embed(rgb)
    assert rgba is not None
    assert np.array_equal(rgba[..., :3], rgb)
    assert set(rgba[..., 3].flat) == {255}


def test_text_beyond_the_decompression_limit_is_not_read():
    for length, is_read in ((MAX_TEXT_BYTES, True), (MAX_TEXT_BYTES + 1, False)):
        rgba = embed(random_pixels(256, 256), "a" * length)
        assert rgba is not None
        assert (extract(rgba) is not None) is is_read


def test_the_layer_follows_the_format():
    rgba = embed(random_pixels(67, 53), "text")
    assert rgba is not None
    stream = pack_bits(read_bits(rgba))
    packed = gzip.compress(b"text", 9, mtime=0)
    assert stream[:15] == b"stealth_pngcomp"
    assert int.from_bytes(stream[15:19], "big") == 8 * len(packed)
    assert stream[19 : 19 + len(packed)] == packed
    assert set(stream[19 + len(packed) :]) == {255}
    assert set(np.unique(rgba[..., 3])) == {254, 255}


def test_an_image_needs_room_for_the_text_and_32_bits_more():
    packed = bytes(10)
    needed = 8 * (len(MAGIC) + 4 + len(packed)) + SPARE_BITS
    assert hide_packed(packed, needed, 1) is not None
    assert hide_packed(packed, needed - 1, 1) is None


def test_columns_after_the_text_are_ignored():
    rgba = embed(random_pixels(256, 256), "text")
    assert rgba is not None
    rgba[:, 200:, 3] = 0
    assert extract(rgba) == "text"


@pytest.mark.parametrize("alpha", [0, 254, 255])
@pytest.mark.parametrize("size", [(1, 1), (64, 64)])
def test_an_image_without_the_layer_has_no_text(size, alpha):
    assert extract(np.full((size[0], size[1], 4), alpha, np.uint8)) is None


@pytest.mark.parametrize("length", [1, 8, 2**32 - 1])
def test_an_invalid_length_is_no_text(length):
    stream = MAGIC + length.to_bytes(4, "big")
    rgba = np.full((64, 64, 4), 255, np.uint8)
    bits = np.unpackbits(np.frombuffer(stream, np.uint8))
    columns = rgba[..., 3].T.copy()
    columns.flat[: len(bits)] = 254 + bits
    rgba[..., 3] = columns.T
    assert extract(rgba) is None


def test_a_truncated_or_foreign_payload_is_no_text():
    valid = gzip.compress(b"a text that is long enough to be cut" * 9, 9, mtime=0)
    bad_block = valid[:10] + b"\xff" + valid[11:]
    for packed in (valid[:-9], b"not gzip at all", valid[:-8] + bytes(8), bad_block):
        columns = hide_packed(packed, 64, 64)
        assert columns is not None
        assert extract(add_alpha(random_pixels(64, 64), columns)) is None


@pytest.mark.skipif(not GENUINE, reason="no genuine NAI images next to this checkout")
@pytest.mark.parametrize("path", GENUINE, ids=lambda path: path.stem)
def test_a_genuine_image_is_read_and_rewritten_bit_for_bit(path):
    with Image.open(path) as genuine:
        rgba = np.asarray(genuine)
    packed = extract_packed(rgba)
    assert packed is not None
    assert '"Software": "NovelAI"' in (extract(rgba) or "")
    columns = hide_packed(packed, *rgba.shape[:2])
    assert columns is not None
    assert np.array_equal(add_alpha(rgba[..., :3], columns), rgba)
