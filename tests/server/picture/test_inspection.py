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
from image_files import embed, make_chunk, make_exif
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
    to_json,
)
from server.picture.prompts import parse_json
from server.picture.signature import NOVELAI_KEY, sign_comment
from server.request.images import MAX_PIXELS

GENUINE = sorted(SAMPLES.glob("*.png"))
RGB = np.random.default_rng(3).integers(0, 256, (96, 64, 3), np.uint8)
COMMENT = {"prompt": "1girl", "seed": 7, "generator": "not NovelAI"}
FORMATS = {"png": png.encode_png, "webp": webp.encode_webp}
LAYERS = ("text", "alpha")


@pytest.fixture(scope="module")
def fields(signing_key):
    """The fields of a signed image."""
    return build_text_fields(sign_comment(RGB, COMMENT, signing_key), "00C0FFEE", 4.25, signing_key.public)


def write(text, alpha, rgb=RGB, encode=png.encode_png):
    """An image file with these fields in its two layers; None or {} leaves a layer out."""
    rgba = embed(rgb, build_alpha_text(alpha) if alpha else None)
    assert rgba is not None
    return encode(rgba, text)


def change_comment(fields, old, new):
    """The fields, with one occurrence in the Comment replaced."""
    assert fields["Comment"].count(old) == 1
    return fields | {"Comment": fields["Comment"].replace(old, new)}


def remove_signature(fields):
    comment = json.loads(fields["Comment"])
    del comment["signed_hash"]
    return fields | {"Comment": json.dumps(comment)}


def find_signers(file, server_key=None):
    return {check.layer: check.signer for check in check_signatures(inspect(file), server_key, None)}


@pytest.mark.parametrize("encode", FORMATS.values(), ids=FORMATS.keys())
def test_our_image_is_verified_in_both_layers_and_reported_as_not_novelai_s(fields, signing_key, encode):
    checks = check_signatures(inspect(write(fields, fields, encode=encode)), signing_key.public, None)
    assert checks == tuple(SignatureCheck(layer, "ours", signing_key.public) for layer in LAYERS)
    assert is_trusted(checks)
    lines = format_signatures(checks).splitlines()
    for layer, line in zip(LAYERS, lines, strict=False):
        assert line == f"{layer}: valid, by this server: NOT NovelAI, key {signing_key.public}"
    assert len(lines) == 3


@pytest.mark.parametrize("layer", LAYERS)
def test_a_single_layer_is_enough(fields, signing_key, layer):
    file = write(fields if layer == "text" else {}, fields if layer == "alpha" else None)
    assert find_signers(file, signing_key.public) == {layer: "ours"}


@pytest.mark.parametrize(
    ("is_server_key", "is_trusted_key", "signer"), [(1, 1, "ours"), (0, 1, "given"), (0, 0, "another")]
)
def test_the_signer_depends_on_whose_key_it_is(fields, signing_key, is_server_key, is_trusted_key, signer):
    key = signing_key.public
    checks = check_signatures(
        inspect(write(fields, fields)), key if is_server_key else None, key if is_trusted_key else None
    )
    assert {check.signer for check in checks} == {signer}
    assert format_signatures(checks).count("NOT NovelAI") == 2
    assert is_trusted(checks) is (signer != "another")


@pytest.mark.parametrize("position", [(0, 0, 0), (40, 30, 1), (95, 63, 2)])
def test_one_flipped_bit_of_a_pixel_breaks_both_layers(fields, signing_key, position):
    rgb = RGB.copy()
    rgb[position] ^= 1
    checks = check_signatures(inspect(write(fields, fields, rgb)), signing_key.public, signing_key.public)
    assert checks == (SignatureCheck("text", "broken"), SignatureCheck("alpha", "broken"))
    assert format_signatures(checks).count("BROKEN") == 2
    assert not is_trusted(checks)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("old", "new"), [('"seed": 7', '"seed": 8'), ("not NovelAI", "NOt NovelAI")])
def test_one_changed_letter_breaks_its_own_layer(fields, signing_key, layer, old, new):
    changed = change_comment(fields, old, new)
    file = write(changed if layer == "text" else fields, changed if layer == "alpha" else fields)
    signers = find_signers(file, signing_key.public)
    assert signers == dict.fromkeys(LAYERS, "ours") | {layer: "broken"}
    assert not is_trusted(check_signatures(inspect(file), signing_key.public, None))
    assert "THE LAYERS DIFFER" in format_report(inspect(file))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_removed_signature_is_reported(fields, signing_key, layer):
    unsigned = remove_signature(fields)
    file = write(unsigned if layer == "text" else fields, unsigned if layer == "alpha" else fields)
    checks = check_signatures(inspect(file), signing_key.public, None)
    assert {check.layer: check.signer for check in checks} == dict.fromkeys(LAYERS, "ours") | {layer: "none"}
    assert f"{layer}: not signed" in format_signatures(checks)
    assert not is_trusted(checks)


def test_an_image_that_names_novelai_s_key_is_not_reported_as_theirs(fields):
    checks = check_signatures(inspect(write(fields | {"Signature key": NOVELAI_KEY}, None)), None, None)
    assert checks == (SignatureCheck("text", "broken"),)


def test_an_image_without_a_comment_has_nothing_to_verify():
    checks = check_signatures(inspect(write({"Title": "a title"}, None)), None, None)
    assert checks == ()
    assert "nothing to verify" in format_signatures(checks)
    assert not is_trusted(checks)


@pytest.mark.parametrize("key", ["", "AAAA", "no key", NOVELAI_KEY[:-1], "\u00e9"])
def test_a_malformed_trusted_key_is_rejected(key):
    with pytest.raises(Rejected, match="32 bytes"):
        check_signatures(inspect(write({}, None)), None, key)


@pytest.mark.skipif(not GENUINE, reason="no genuine NAI images next to this checkout")
@pytest.mark.parametrize("path", GENUINE, ids=lambda path: path.stem)
@pytest.mark.parametrize("signature", ["kept", "removed"])
def test_a_genuine_image_is_read_and_verified(path, signature, signing_key):
    inspection = inspect(path.read_bytes())
    if signature == "removed":
        assert inspection.alpha is not None
        inspection = replace(
            inspection, text=remove_signature(inspection.text), alpha=remove_signature(inspection.alpha)
        )
    checks = check_signatures(inspection, signing_key.public, signing_key.public)
    is_signed = "signed_hash" in json.loads(inspection.text["Comment"])
    key = NOVELAI_KEY if is_signed else None
    assert checks == tuple(SignatureCheck(layer, "NovelAI" if is_signed else "none", key) for layer in LAYERS)
    assert ("by NovelAI" in format_signatures(checks)) is is_signed
    assert ("not signed" in format_signatures(checks)) is not is_signed
    assert f"PNG, {inspection.size[0]} x {inspection.size[1]}" in format_report(inspection)
    assert format_report(inspection).endswith("alpha: the same")


def test_the_report_lists_the_comment_key_by_key(fields):
    lines = format_report(inspect(write(fields, fields))).splitlines()
    assert lines[:2] == ["PNG, 64 x 96", "text:"]
    assert "  Source: Stable Diffusion XL 00C0FFEE" in lines
    assert lines[lines.index("  Comment:") + 1 :][:3] == [
        '    prompt: "1girl"',
        "    seed: 7",
        '    generator: "not NovelAI"',
    ]
    assert lines[-1] == "alpha: the same"


@pytest.mark.parametrize("rgba", [RGB, embed(RGB)], ids=["RGB", "RGBA"])
def test_an_image_without_layers_has_no_fields(rgba):
    inspection = inspect(png.encode_png(rgba, {}))
    assert (inspection.text, inspection.alpha) == ({}, None)
    assert format_report(inspection) == "PNG, 64 x 96\ntext: none\nalpha: none"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_a_report_of_any_text_is_printable(text):
    inspection = Inspection(
        "PNG", RGB, {"Title": text, "Comment": json.dumps({text: text})}, {}, {text: text}
    )
    report = format_report(inspection) + format_signatures((SignatureCheck("text", "another", text),))
    assert all(letter.isprintable() for letter in report.replace("\n", ""))


def test_metadata_cannot_imitate_a_line_of_the_report():
    malicious = "x\n\x1b[2Jtext: valid, by NovelAI\u202e"
    report = format_report(
        Inspection("PNG", RGB, {"Title": malicious, "Comment": json.dumps({malicious: malicious})}, {}, None)
    )
    assert not [line for line in report.splitlines() if line.startswith("text: valid")]
    assert r"x\n\x1b[2Jtext: valid, by NovelAI\u202e" in report


def test_the_inspection_is_plain_json(fields, signing_key):
    inspection = inspect(write(fields, fields))
    values = to_json(inspection, check_signatures(inspection, signing_key.public, None))
    assert json.loads(json.dumps(values)) == values
    parsed = fields | {"Comment": json.loads(fields["Comment"])}
    assert values == {
        "format": "PNG",
        "width": 64,
        "height": 96,
        "layers": {"text": parsed, "alpha": {key: parsed[key] for key in parsed if key != "Title"}},
        "agree": True,
        "signatures": [{"layer": layer, "signer": "ours", "key": signing_key.public} for layer in LAYERS],
        "trusted": True,
    }


@pytest.mark.parametrize("text", ["", "no json", "[1]", '"a string"', "[" * 100_000, "{}", '{"a": 1}'])
def test_alpha_text_without_fields_reads_as_none(text):
    rgba = embed(np.zeros((64, 64, 3), np.uint8), text)
    assert rgba is not None
    inspection = inspect(png.encode_png(rgba, {}))
    assert (inspection.text, inspection.alpha) == ({}, None)


def test_a_comment_of_any_depth_is_reported():
    for depth in (10, 500, *range(930, 1000), 100_000):
        inspection = Inspection("PNG", RGB, {"Comment": '{"a":' * depth + "1" + "}" * depth}, {}, None)
        format_report(inspection)
        json.dumps(to_json(inspection, check_signatures(inspection, NOVELAI_KEY, None)))


def build_jpeg(user_comment):
    """A JPEG with an EXIF user comment, as other programs make them from NAI's images."""
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
def test_exif_holds_all_fields_or_a_bare_comment(user_comment, text):
    assert inspect(build_jpeg(user_comment)).text == text


def test_a_stranger_s_software_and_dates_are_no_difference(fields, signing_key):
    text = {"Software": "www.example.test", "date:create": "2026-01-02"}
    for strange in (text, fields | text):
        inspection = inspect(write(strange, fields))
        assert inspection.layers_agree
        assert "DIFFER" not in format_report(inspection)
        assert inspection.fields["Comment"] == fields["Comment"]
        assert inspection.fields["date:create"] == "2026-01-02"
    assert "THE LAYERS DIFFER" in format_report(inspect(write(fields | {"Description": "x"}, fields)))
    assert find_signers(write(text, fields), signing_key.public) == {"alpha": "ours"}


def test_exif_beside_texts_is_a_layer_of_its_own(fields, signing_key):
    exif = make_chunk(b"eXIf", make_exif(">", b"UNICODE\0" + json.dumps(fields).encode("utf-16-be")))
    file = png.encode_png(RGB, {"date:create": "2026-01-02"})
    inspection = inspect(file[:33] + exif + file[33:])
    assert (inspection.text, inspection.exif) == ({"date:create": "2026-01-02"}, fields)
    assert find_signers(file[:33] + exif + file[33:], signing_key.public) == {"exif": "ours"}
    assert "exif:\n  Title: AI generated image" in format_report(inspection)
    assert inspection.fields == fields | {"date:create": "2026-01-02"}
    assert inspect(png.encode_png(RGB, {})[:33] + exif + file[33:]).layers_agree


def test_the_signature_of_a_jpeg_is_broken_not_an_error(fields, signing_key):
    file = build_jpeg(b"ASCII\0\0\0" + fields["Comment"].encode())
    assert find_signers(file, signing_key.public) == {"text": "broken"}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "RGB"])
def test_images_of_any_mode_are_read_as_rgb(mode):
    file = BytesIO()
    Image.new(mode, (9, 5)).save(file, "PNG")
    assert inspect(file.getvalue()).rgb.shape == (5, 9, 3)


def build_header(width, height):
    """A PNG without pixel data."""
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    return png.SIGNATURE + struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content)) + end


def build_gif():
    file = BytesIO()
    Image.new("RGB", (4, 4)).save(file, "GIF")
    return file.getvalue()


COMPLETE = png.encode_png(RGB, {"Title": "a title"})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a PNG"),
        (b"no image", "not a PNG"),
        (build_gif(), "not a PNG"),
        (COMPLETE[: len(COMPLETE) // 2], "broken"),
        (build_header(MAX_PIXELS + 1, 1), f"more than {MAX_PIXELS}"),
        (build_header(8192, 8192), f"more than {MAX_PIXELS}"),
        (build_header(60_000, 60_000), f"more than {MAX_PIXELS}"),
    ],
    ids=["empty", "no image", "GIF", "truncated", "wide", "large", "bomb"],
)
def test_an_unreadable_image_is_rejected_with_a_reason(data, reason):
    with pytest.raises(Rejected, match=reason):
        inspect(data)


@given(st.integers(0, len(COMPLETE) - 1), st.integers(0, 255))
def test_an_image_with_a_changed_byte_is_read_or_rejected(position, byte):
    data = bytearray(COMPLETE)
    data[position] = byte
    with suppress(Rejected):
        format_report(inspect(bytes(data)))


@pytest.mark.parametrize(
    ("text", "value"), [('{"a": 1}', {"a": 1}), ("[1]", {}), ("1", {}), ("null", {}), ("", {}), ("{", {})]
)
def test_only_an_object_is_parsed(text, value):
    assert parse_json(text) == value
