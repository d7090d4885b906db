import json
import struct
import zlib
from contextlib import suppress
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import SAMPLES
from PIL import Image

from server.errors import Rejected
from server.picture import png, webp
from server.picture.comment import build_alpha_text, build_text_fields
from server.picture.inspection import (
    Inspection,
    SignatureCheck,
    check_signatures,
    format_report,
    format_signatures,
    inspect,
    is_trusted,
    parse_json,
    to_json,
)
from server.picture.signature import NOVELAI_KEY, sign_comment
from server.picture.stealth import add_opaque_alpha, embed
from server.request.images import MAX_PIXELS

GENUINE = sorted(SAMPLES.glob("*.png"))
RGB = np.random.default_rng(3).integers(0, 256, (96, 64, 3), np.uint8)
COMMENT = {"prompt": "1girl", "seed": 7, "generator": "not NovelAI"}
FORMATS = {"png": png.encode_png, "webp": webp.encode_webp}
LAYERS = ("text", "alpha")


@pytest.fixture(scope="module")
def fields(signing_key):
    """What a signed picture of ours says."""
    return build_text_fields(sign_comment(RGB, COMMENT, signing_key), "00C0FFEE", 4.25, signing_key.public)


def written(text, alpha, rgb=RGB, encode=png.encode_png):
    """A picture with these fields in its two layers; None or {} leaves a layer out."""
    rgba = embed(rgb, build_alpha_text(alpha)) if alpha else add_opaque_alpha(rgb)
    assert rgba is not None
    return encode(rgba, text)


def changed(fields, old, new):
    """The fields with one spot of their Comment changed."""
    assert fields["Comment"].count(old) == 1
    return fields | {"Comment": fields["Comment"].replace(old, new)}


def without_signature(fields):
    comment = json.loads(fields["Comment"])
    del comment["signed_hash"]
    return fields | {"Comment": json.dumps(comment)}


def signers(file, own=None, given=None):
    return {said.layer: said.signer for said in check_signatures(inspect(file), own, given)}


@pytest.mark.parametrize("encode", FORMATS.values(), ids=FORMATS.keys())
def test_our_picture_is_known_in_both_layers_and_told_not_to_be_novelai_s(fields, signing_key, encode):
    said = check_signatures(inspect(written(fields, fields, encode=encode)), signing_key.public, None)
    assert said == tuple(SignatureCheck(layer, "ours", signing_key.public) for layer in LAYERS)
    assert is_trusted(said)
    lines = format_signatures(said).splitlines()
    for layer, line in zip(LAYERS, lines, strict=False):
        assert line == f"{layer}: valid, by this server: NOT NovelAI, key {signing_key.public}"
    assert len(lines) == 3


@pytest.mark.parametrize("layer", LAYERS)
def test_one_layer_alone_is_enough(fields, signing_key, layer):
    file = written(fields if layer == "text" else {}, fields if layer == "alpha" else None)
    assert signers(file, signing_key.public) == {layer: "ours"}


@pytest.mark.parametrize(("own", "given", "signer"), [(1, 1, "ours"), (0, 1, "given"), (0, 0, "another")])
def test_whose_key_it_is_decides_what_is_said(fields, signing_key, own, given, signer):
    key = signing_key.public
    said = check_signatures(inspect(written(fields, fields)), key if own else None, key if given else None)
    assert {verdict.signer for verdict in said} == {signer}
    assert format_signatures(said).count("NOT NovelAI") == 2
    assert is_trusted(said) is (signer != "another")


@pytest.mark.parametrize("place", [(0, 0, 0), (40, 30, 1), (95, 63, 2)])
def test_one_flipped_bit_of_a_pixel_breaks_both_layers(fields, signing_key, place):
    rgb = RGB.copy()
    rgb[place] ^= 1
    said = check_signatures(inspect(written(fields, fields, rgb)), signing_key.public, signing_key.public)
    assert said == (SignatureCheck("text", "broken"), SignatureCheck("alpha", "broken"))
    assert format_signatures(said).count("BROKEN") == 2
    assert not is_trusted(said)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("old", "new"), [('"seed": 7', '"seed": 8'), ("not NovelAI", "NOt NovelAI")])
def test_one_changed_letter_breaks_its_own_layer(fields, signing_key, layer, old, new):
    false = changed(fields, old, new)
    file = written(false if layer == "text" else fields, false if layer == "alpha" else fields)
    said = signers(file, signing_key.public)
    assert said == dict.fromkeys(LAYERS, "ours") | {layer: "broken"}
    assert not is_trusted(check_signatures(inspect(file), signing_key.public, None))
    assert "THE LAYERS DIFFER" in format_report(inspect(file))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_signature_taken_away_is_missed(fields, signing_key, layer):
    bare = without_signature(fields)
    file = written(bare if layer == "text" else fields, bare if layer == "alpha" else fields)
    said = check_signatures(inspect(file), signing_key.public, None)
    assert {verdict.layer: verdict.signer for verdict in said} == dict.fromkeys(LAYERS, "ours") | {
        layer: "none"
    }
    assert f"{layer}: not signed" in format_signatures(said)
    assert not is_trusted(said)


def test_a_picture_that_names_novelai_s_key_is_not_taken_for_theirs(fields):
    said = check_signatures(inspect(written(fields | {"Signature key": NOVELAI_KEY}, None)), None, None)
    assert said == (SignatureCheck("text", "broken"),)


def test_a_picture_without_a_comment_says_nothing_of_its_maker():
    said = check_signatures(inspect(written({"Title": "a title"}, None)), None, None)
    assert said == ()
    assert "nothing to verify" in format_signatures(said)
    assert not is_trusted(said)


@pytest.mark.parametrize("key", ["", "AAAA", "no key", NOVELAI_KEY[:-1], "\u00e9"])
def test_a_given_key_that_is_none_is_refused(key):
    with pytest.raises(Rejected, match="32 bytes"):
        check_signatures(inspect(written({}, None)), None, key)


@pytest.mark.skipif(not GENUINE, reason="the genuine pictures are not beside this checkout")
@pytest.mark.parametrize("path", GENUINE, ids=lambda path: path.stem)
@pytest.mark.parametrize("signature", ["as it is", "taken away"])
def test_a_genuine_picture_is_read_and_verified(path, signature, signing_key):
    found = inspect(path.read_bytes())
    if signature == "taken away":
        assert found.alpha is not None
        found = replace(found, text=without_signature(found.text), alpha=without_signature(found.alpha))
    said = check_signatures(found, signing_key.public, signing_key.public)
    is_signed = "signed_hash" in json.loads(found.text["Comment"])
    key = NOVELAI_KEY if is_signed else None
    assert said == tuple(SignatureCheck(layer, "NovelAI" if is_signed else "none", key) for layer in LAYERS)
    assert ("by NovelAI" in format_signatures(said)) is is_signed
    assert ("not signed" in format_signatures(said)) is not is_signed
    assert f"PNG, {found.size[0]} x {found.size[1]}" in format_report(found)
    assert format_report(found).endswith("alpha: the same")


def test_a_report_shows_the_comment_key_by_key(fields):
    lines = format_report(inspect(written(fields, fields))).splitlines()
    assert lines[:2] == ["PNG, 64 x 96", "text:"]
    assert "  Source: Stable Diffusion XL 00C0FFEE" in lines
    assert lines[lines.index("  Comment:") + 1 :][:3] == [
        '    prompt: "1girl"',
        "    seed: 7",
        '    generator: "not NovelAI"',
    ]
    assert lines[-1] == "alpha: the same"


@pytest.mark.parametrize("rgba", [RGB, add_opaque_alpha(RGB)], ids=["RGB", "RGBA"])
def test_a_picture_without_layers_reads_as_empty(rgba):
    found = inspect(png.encode_png(rgba, {}))
    assert (found.text, found.alpha) == ({}, None)
    assert format_report(found) == "PNG, 64 x 96\ntext: none\nalpha: none"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_whatever_a_picture_says_a_terminal_only_prints_it(told):
    found = Inspection("PNG", RGB, {"Title": told, "Comment": json.dumps({told: told})}, {told: told})
    shown = format_report(found) + format_signatures((SignatureCheck("text", "another", told),))
    assert all(letter.isprintable() for letter in shown.replace("\n", ""))


def test_a_line_of_a_picture_cannot_pass_for_one_of_ours():
    evil = "x\n\x1b[2Jtext: valid, by NovelAI\u202e"
    shown = format_report(Inspection("PNG", RGB, {"Title": evil, "Comment": json.dumps({evil: evil})}, None))
    assert not [line for line in shown.splitlines() if line.startswith("text: valid")]
    assert r"x\n\x1b[2Jtext: valid, by NovelAI\u202e" in shown


def test_all_of_it_is_plain_json(fields, signing_key):
    found = inspect(written(fields, fields))
    told = to_json(found, check_signatures(found, signing_key.public, None))
    assert json.loads(json.dumps(told)) == told
    shown = fields | {"Comment": json.loads(fields["Comment"])}
    assert told == {
        "format": "PNG",
        "width": 64,
        "height": 96,
        "layers": {"text": shown, "alpha": {key: shown[key] for key in shown if key != "Title"}},
        "agree": True,
        "signatures": [{"layer": layer, "signer": "ours", "key": signing_key.public} for layer in LAYERS],
        "trusted": True,
    }


@pytest.mark.parametrize("text", ["", "no json", "[1]", '"a string"', "[" * 100_000, "{}", '{"a": 1}'])
def test_alpha_that_is_not_a_set_of_fields_reads_as_none(text):
    rgba = embed(np.zeros((64, 64, 3), np.uint8), text)
    assert rgba is not None
    found = inspect(png.encode_png(rgba, {}))
    assert (found.text, found.alpha) == ({}, None)


def test_a_comment_of_any_depth_is_told_or_left_as_it_is():
    for depth in (10, 500, *range(930, 1000), 100_000):
        found = Inspection("PNG", RGB, {"Comment": '{"a":' * depth + "1" + "}" * depth}, None)
        format_report(found)
        json.dumps(to_json(found, check_signatures(found, NOVELAI_KEY, None)))


def exif_picture(user_comment):
    """A JPEG as other programs make them from a picture of NAI's, the Comment in its EXIF."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = user_comment
    file = BytesIO()
    Image.fromarray(RGB).save(file, "JPEG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize(
    ("user_comment", "text"),
    [
        (b'ASCII\0\0\0{"seed": 7}', {"Comment": '{"seed": 7}'}),
        (b'ASCII\0\0\0{"Comment": "{}", "Source": "a", "n": 1}', {"Comment": "{}", "Source": "a"}),
        (b"ASCII\0\0\0holiday", {}),
        (b"UNICODE\0{}", {}),
        (b"", {}),
    ],
)
def test_fields_in_exif_are_read_whole_or_as_a_bare_comment(user_comment, text):
    assert inspect(exif_picture(user_comment)).text == text


def test_a_jpeg_of_a_signed_picture_is_broken_not_an_error(fields, signing_key):
    file = exif_picture(b"ASCII\0\0\0" + fields["Comment"].encode())
    assert signers(file, signing_key.public) == {"text": "broken"}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "RGB"])
def test_pictures_of_any_kind_are_read_in_colour(mode):
    file = BytesIO()
    Image.new(mode, (9, 5)).save(file, "PNG")
    assert inspect(file.getvalue()).rgb.shape == (5, 9, 3)


def header(width, height):
    """A PNG that ends where its pixels should begin."""
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    return png.SIGNATURE + struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content)) + end


def gif():
    file = BytesIO()
    Image.new("RGB", (4, 4)).save(file, "GIF")
    return file.getvalue()


WHOLE = png.encode_png(RGB, {"Title": "a title"})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a PNG"),
        (b"no picture", "not a PNG"),
        (gif(), "not a PNG"),
        (WHOLE[: len(WHOLE) // 2], "broken"),
        (header(MAX_PIXELS + 1, 1), f"more than {MAX_PIXELS}"),
        (header(8192, 8192), f"more than {MAX_PIXELS}"),
        (header(60_000, 60_000), f"more than {MAX_PIXELS}"),
    ],
    ids=["nothing", "no picture", "GIF", "half", "wide", "large", "a bomb"],
)
def test_what_cannot_be_read_is_refused_in_our_own_words(data, reason):
    with pytest.raises(Rejected, match=reason):
        inspect(data)


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255))
def test_a_broken_byte_is_answered_or_refused(place, byte):
    data = bytearray(WHOLE)
    data[place] = byte
    with suppress(Rejected):
        format_report(inspect(bytes(data)))


@pytest.mark.parametrize(
    ("text", "found"), [('{"a": 1}', {"a": 1}), ("[1]", {}), ("1", {}), ("null", {}), ("", {}), ("{", {})]
)
def test_only_an_object_is_parsed(text, found):
    assert parse_json(text) == found
