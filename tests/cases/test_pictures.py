"""Image files that users reported: what inspect, enhance and upscale make of each.

The files were made after the reports; the prompts, the negative prompts and the steps are in them.
"""

import json
import struct
import zlib
from base64 import b64encode
from io import BytesIO

import numpy as np
import pytest
from fake_model import GENERATE
from PIL import Image

UPSCALE = "/ai/upscale"
PNG = {"Accept": "image/png"}
GIRL = ("1girl, red hair", "lowres")
PROMPTS = {
    "nai2022.png": ("{masterpiece}, 1girl, red hair", "lowres, blurry"),  # the prompt is in Description alone
    "alpha_software.png": GIRL,  # a site wrote its own Software; NAI's text is in the alpha
    "alpha_xmp.png": GIRL,
    "exif_dates.png": GIRL,  # dates as text, NAI's fields in the EXIF
    "utf8_text.png": ("1girl, 猫耳, 笑顔", "低画質"),
    "latin1_text.png": ("1girl, café, naïve, Ångström", "flou"),
    "comment_utf16le.webp": GIRL,
    "comment_utf16be.jpg": GIRL,
    "comment_undefined.webp": GIRL,
    "profile_large.png": GIRL,
    "text_large.png": GIRL,
}
P3_COLOR = (218, 67, 47)
"""What (200, 80, 60) of profile_p3.png is in sRGB."""


def upscale(client, data):
    return client.post(UPSCALE, json={"image": b64encode(data).decode()}, headers=PNG)


def read_fields(data):
    """The text fields of a PNG and its Comment, parsed."""
    with Image.open(BytesIO(data)) as image:
        fields = {key: value for key, value in image.info.items() if isinstance(value, str)}
    return fields, json.loads(fields["Comment"])


def read_pixels(response):
    assert response.status_code == 200, response.text
    with Image.open(BytesIO(response.content)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("name", PROMPTS)
def test_enhance_generates_from_the_prompt(naiad, file, tmp_path, name):
    done = naiad("enhance", file(name), "--demo", "-o", "enhanced.png")
    assert done.status == 0, done.error
    _, comment = read_fields((tmp_path / "enhanced.png").read_bytes())
    assert (comment["prompt"], comment["uc"], comment["steps"]) == (*PROMPTS[name], 4)


@pytest.mark.parametrize("name", PROMPTS)
def test_upscale_keeps_the_prompt(client, file, name):
    response = upscale(client, file(name).read_bytes())
    assert response.status_code == 200, response.text
    fields, comment = read_fields(response.content)
    assert (comment["prompt"], comment["uc"]) == PROMPTS[name]
    assert fields["Description"] == PROMPTS[name][0]


@pytest.mark.parametrize("name", ["alpha_software.png", "alpha_xmp.png"])
def test_upscale_keeps_the_fields_of_the_alpha(client, file, name):
    _, comment = read_fields(upscale(client, file(name).read_bytes()).content)
    origin = comment["derived_from"]
    assert origin["Description"] == GIRL[0]
    assert json.loads(origin["Comment"])["seed"] == 7


@pytest.mark.parametrize("name", [name for name, prompts in PROMPTS.items() if prompts == GIRL])
def test_inspect_shows_all_fields(naiad, file, name):
    done = naiad("inspect", file(name), "--json")
    assert done.status == 0, done.error
    report = json.loads(done.output)
    fields = {key: value for layer in report["layers"].values() for key, value in layer.items()}
    assert fields["Description"] == GIRL[0]
    assert (fields["Comment"]["prompt"], fields["Comment"]["seed"]) == (GIRL[0], 7)
    assert fields["Source"] == "Stable Diffusion XL C1E1DE52"
    assert report["agree"]


def test_inspect_shows_dates_next_to_the_fields(naiad, file):
    layers = json.loads(naiad("inspect", file("exif_dates.png"), "--json").output)["layers"]
    assert "2026-01-02T03:04:05+00:00" in str(layers)
    assert GIRL[0] in str(layers)


@pytest.mark.parametrize("name", ["utf8_text.png", "latin1_text.png"])
def test_inspect_decodes_text(naiad, file, name):
    fields = json.loads(naiad("inspect", file(name), "--json").output)["layers"]["text"]
    assert fields["Description"] == PROMPTS[name][0]
    assert (fields["Comment"]["prompt"], fields["Comment"]["uc"]) == PROMPTS[name]


def test_enhance_generates_all_characters_at_their_places(naiad, file, fake_model):
    done = naiad("enhance", file("v4_two_girls.png"), "--demo", "-o", "enhanced.png")
    assert done.status == 0, done.error
    (job,) = fake_model.jobs
    texts = [(character.positive, character.negative) for character in job.prompts.characters]
    assert (job.prompts.positive, job.prompts.negative) == ("2girls, street", "lowres")
    assert texts == [("girl, red hair", "hat"), ("girl, blue hair, hat", "")]
    assert "character at 0.7, 0.5: girl, blue hair, hat" in done.error


def test_a_wide_gamut_is_converted_to_srgb(client, file, fake_model):
    data = file("profile_p3.png").read_bytes()
    assert np.abs(read_pixels(upscale(client, data)) - P3_COLOR).max() <= 2
    mask = BytesIO()
    Image.new("L", (64, 64), 255).save(mask, "PNG")
    for action, masked in (("img2img", {}), ("infill", {"mask": b64encode(mask.getvalue()).decode()})):
        sent = {"width": 64, "height": 64, "steps": 1, "image": b64encode(data).decode(), **masked}
        response = client.post(GENERATE, json={"input": "cat", "action": action, "parameters": sent})
        assert response.status_code == 200, response.text
        init = np.frombuffer(fake_model.jobs[-1].passes[0].init.image.rgb, np.uint8).reshape(-1, 3)
        assert np.abs(init.astype(int) - P3_COLOR).max() <= 2


def test_an_srgb_profile_changes_no_pixel(client, file, fake_model):
    upscale(client, file("profile_srgb.png").read_bytes())
    with Image.open(file("profile_srgb.png")) as image:
        assert fake_model.jobs[-1].image.rgb == image.convert("RGB").tobytes()


def test_a_profile_that_unpacks_to_200_mb_is_refused(client, file):
    data = file("profile_srgb.png").read_bytes()
    profile = b"iCCPx\0\0" + zlib.compress(bytes(200_000_000), 1)
    chunk = struct.pack(">I", len(profile) - 4) + profile + struct.pack(">I", zlib.crc32(profile))
    start = data.index(b"iCCP") - 4
    end = start + 12 + struct.unpack_from(">I", data, start)[0]
    response = upscale(client, data[:start] + chunk + data[end:])
    assert response.status_code == 400


def test_a_wrong_checksum_of_a_text_loses_that_text_at_most(client, file):
    response = upscale(client, file("checksum_text.png").read_bytes())
    assert response.status_code == 200 or "not a PNG" not in response.text
