import json
import logging
import struct
from io import BytesIO
from pathlib import Path

import naipng
import numpy as np
import pytest
from PIL import Image
from sd_parsers import ParserManager
from sd_parsers.extractors import Eagerness

from server.metadata import alpha_text, read, text_fields
from server.png import encode

SAMPLES = sorted((Path(__file__).parents[2] / "shared" / "samples").glob("*.png"))
COMMENT: dict[str, object] = {
    "prompt": "1girl, {best quality}",
    "steps": 28,
    "seed": 7,
    "scale": 5.0,
    "sampler": "k_euler",
    "uc": "lowres",
}


def opened(file):
    """The picture in a file's bytes or at a path; nothing is left open."""
    with Image.open(BytesIO(file) if isinstance(file, bytes) else file) as found:
        found.load()
        return found


def picture(height=128, width=96):
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)


def fields(prompt="1girl, {best quality}"):
    return text_fields(COMMENT | {"prompt": prompt}, "00C0FFEE", 4.25)


def chunks(file):
    """Every chunk's type and content, runs of IDAT told once: read without any library."""
    found, at = [], 8
    while at < len(file):
        length, kind = struct.unpack(">I4s", file[at : at + 8])
        content = file[at + 8 : at + 8 + length]
        if kind != b"IDAT" or found[-1][0] != "IDAT":
            found.append((kind.decode(), b"" if kind == b"IDAT" else content))
        at += length + 12
    return found


def test_pixels_survive_under_a_full_colour_header():
    file = encode(picture(), fields())
    assert np.array_equal(np.asarray(opened(file))[..., :3], picture())
    assert chunks(file)[0] == ("IHDR", struct.pack(">IIBBBBB", 96, 128, 8, 6, 0, 0, 0))


def test_chunks_stand_in_nai_order():
    found = chunks(encode(picture(), fields()))
    assert [kind for kind, _ in found] == ["IHDR", *["tEXt"] * 6, "IDAT", "IEND"]
    names = [content.split(b"\0")[0].decode() for kind, content in found if kind == "tEXt"]
    assert names == ["Title", "Description", "Software", "Source", "Generation time", "Comment"]


@pytest.mark.parametrize(
    ("prompt", "kind", "value"),
    [
        ("caf\u00e9\nau lait", "tEXt", b"Description\0caf\xe9\nau lait"),
        ("\u732b", "iTXt", b"Description\0\0\0\0\0\xe7\x8c\xab"),
    ],
)
def test_text_beyond_latin_1_becomes_an_international_chunk(prompt, kind, value):
    assert (kind, value) in chunks(encode(picture(), fields(prompt)))


@pytest.mark.parametrize("prompt", ['say "hi" \\ {{a}}', "caf\u00e9", "\u732b \U0001f63a", "a\nb", ""])
def test_both_layers_read_back(prompt):
    text, alpha = read(opened(encode(picture(), fields(prompt))))
    assert text == fields(prompt)
    assert alpha == json.loads(alpha_text(fields(prompt)))


def test_a_picture_too_small_for_alpha_keeps_its_text_and_is_opaque(caplog):
    with caplog.at_level(logging.WARNING, "naiad"):
        file = encode(picture(16, 16), fields())
    text, alpha = read(opened(file))
    assert (text, alpha) == (fields(), None)
    assert set(np.unique(np.asarray(opened(file))[..., 3])) == {255}
    assert "16x16" in caplog.text


def test_naipng_reads_the_comment():
    assert naipng.read(BytesIO(encode(picture(), fields()))) == COMMENT  # it cannot read bytes: its own bug


def test_sd_parsers_reads_the_text():
    found = ParserManager(eagerness=Eagerness.FAST).parse(BytesIO(encode(picture(), fields())))
    assert found is not None
    assert found.full_prompt == COMMENT["prompt"]
    assert found.full_negative_prompt == COMMENT["uc"]
    assert [model.hash for model in found.models] == ["00C0FFEE"]


@pytest.mark.filterwarnings("ignore:.*getdata:DeprecationWarning")  # the reader's, not ours
def test_sd_parsers_reads_the_alpha_alone():
    bare = BytesIO()
    Image.fromarray(np.asarray(opened(encode(picture(), fields())))).save(bare, "PNG")
    found = ParserManager(eagerness=Eagerness.EAGER).parse(bare)
    assert found is not None
    assert found.full_prompt == COMMENT["prompt"]


@pytest.mark.skipif(not SAMPLES, reason="the genuine pictures are not beside this checkout")
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_genuine_picture_encoded_again_has_the_same_chunks(path):
    text, alpha = read(opened(path))
    file = encode(np.asarray(opened(path))[..., :3], text)
    assert chunks(file) == chunks(path.read_bytes())
    assert read(opened(file)) == (text, alpha)
