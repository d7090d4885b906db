"""Upscaling over HTTP, with a fake model that repeats pixels."""

import json
from base64 import b64decode, b64encode
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from fake_model import build_state, start_client, unzip_images
from image_files import embed
from paths import SHARED
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from server.api.upscale import read_upscale
from server.picture.inspection import check_signatures, inspect
from server.request.v4_prompt import flatten_v4_prompt

UPSCALE = "/ai/upscale"
SAMPLE = SHARED / "samples" / "v3_img2img_2024-07.png"
PIXELS = np.random.default_rng(3).integers(0, 256, (96, 64, 3), np.uint8)


def encode_base64(pixels, **options):
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return b64encode(file.getvalue()).decode()


@pytest.fixture
def client(model, fake_model, signing_key):
    with start_client(build_state(model, fake_model, signing_key)) as client:
        yield client


@pytest.mark.parametrize(
    ("sent", "size"),
    [
        ({"width": 64, "height": 96, "scale": 2}, (128, 192)),
        ({"width": 64, "height": 96, "scale": 4.0}, (256, 384)),
        ({"scale": "1.5"}, (96, 144)),
        ({"model": "nai-diffusion-4-5-full", "declared_blur_sigma": 0}, (256, 384)),
        ({"declared_blur_sigma": 0}, (256, 384)),
        ({"model": "nai-diffusion-5-full"}, (256, 384)),
        ({"model": "nai-diffusion-5-full", "scale": 2}, (128, 192)),
    ],
)
def test_both_forms_of_request_get_one_png_in_a_zip(client, sent, size):
    response = client.post(UPSCALE, json={"image": encode_base64(PIXELS)} | sent)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "binary/octet-stream"
    assert "Lanczos" in response.headers["x-naiad-warning"]
    (image,) = unzip_images(response).values()
    assert image.size == size
    assert image.format == "PNG"
    if size == (128, 192):
        assert (np.asarray(image.convert("RGB")) == PIXELS.repeat(2, 0).repeat(2, 1)).all()


def test_an_image_in_a_part_of_a_form_is_upscaled_4_times():
    part = b64decode(encode_base64(PIXELS))
    assert read_upscale({"image": part}).job.width == 4 * 64
    assert read_upscale({"image": part, "scale": 2}).job.width == 2 * 64


def test_webp_and_a_bare_image_are_available(client):
    headers = {"Accept": "image/webp"}
    response = client.post(
        UPSCALE, json={"image": encode_base64(PIXELS), "image_format": "webp"}, headers=headers
    )
    assert response.headers["content-type"] == "image/webp"
    assert inspect(response.content).size == (128, 192)


def test_an_upscaler_is_recorded_and_there_is_no_warning(model, fake_model, signing_key):
    state = build_state(replace(model, upscaler=Path("anime6.safetensors")), fake_model, signing_key)
    with start_client(state) as client:
        response = client.post(UPSCALE, json={"image": encode_base64(PIXELS)})
    assert "x-naiad-warning" not in response.headers
    (image,) = unzip_images(response).values()
    fields = json.loads(image.info["Comment"])["naiad"]
    assert fields["upscale"] == {"width": 128, "height": 192, "by": "anime6.safetensors"}


@pytest.mark.parametrize(
    ("drawn_by", "recorded"), [("1234ABCD", "1234ABCD"), ("99999999", None), (None, None)]
)
@pytest.mark.parametrize("path", [UPSCALE, "/ai/augment-image"])
def test_the_source_is_the_model_that_drew_the_image(
    model, fake_model, signing_key, path, drawn_by, recorded
):
    other = replace(
        model,
        id="other",
        ids=("other",),
        fingerprint="1234ABCD",
        files={"vae": "00000000", "upscaler": "11111111"},
    )
    state = build_state(model, fake_model, signing_key)
    state = replace(state, policy=replace(state.policy, others=(other,)))
    text = PngInfo()
    if drawn_by is not None:
        text.add_text("Source", f"Stable Diffusion XL {drawn_by}")
    with start_client(state) as client:
        sent = {"image": encode_base64(PIXELS, pnginfo=text), "req_type": "lineart"}
        (image,) = unzip_images(client.post(path, json=sent)).values()
    assert image.info["Source"] == f"Stable Diffusion XL {recorded or model.fingerprint}"
    files = json.loads(image.info["Comment"])["naiad"].get("files", {})
    assert files == ({"upscaler": "11111111"} if path == UPSCALE and recorded else {})


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({}, "image: is required"),
        ({"image": ""}, "image: is required"),
        ({"image": "http://169.254.169.254/"}, "image: not Base64"),
        ({"image": "AAAA"}, "image: not a PNG, WebP or JPEG image"),
        ({"image": encode_base64(PIXELS), "scale": 1}, "scale: 1 is not a number above 1, at most 4"),
        ({"image": encode_base64(PIXELS), "scale": 8}, "scale: 8 is not"),
        (
            {"image": encode_base64(np.zeros((3000, 1000, 3), np.uint8)), "scale": 4},
            "Image resolution too high: scale 4 of 1000x3000 is 48000000 pixels; at most 33554432. "
            "Send a scale of at most 3.34, or an image of at most 2097152 pixels",
        ),
        (
            {"image": encode_base64(np.zeros((2000, 2000, 3), np.uint8))},
            "image: 2000 x 2000 is more than 3145728 pixels",
        ),
    ],
)
def test_images_that_cannot_be_upscaled_are_rejected(client, fake_model, sent, message):
    response = client.post(UPSCALE, json=sent)
    assert response.status_code == 400
    assert message in response.json()["message"]
    assert fake_model.jobs == []


def test_an_upscaled_image_is_signed_by_us_and_records_its_source(client, signing_key):
    source = client.post(
        "/ai/generate-image",
        json={"input": "1girl", "parameters": {"width": 256, "height": 256, "seed": 3}},
        headers={"Accept": "image/png"},
    ).content
    response = client.post(
        UPSCALE, json={"image": b64encode(source).decode()}, headers={"Accept": "image/png"}
    )
    before, after = inspect(source), inspect(response.content)
    assert {verdict.signer for verdict in check_signatures(after, signing_key.public, None)} == {"ours"}
    new, old = json.loads(after.text["Comment"]), json.loads(before.text["Comment"])
    assert (new["prompt"], new["seed"], new["width"], new["height"]) == (old["prompt"], 3, 512, 512)
    assert new["derived_from"]["Source"] == before.text["Source"]
    kept = json.loads(new["derived_from"]["Comment"])
    assert kept == {key: value for key, value in old.items() if key != "signed_hash"}
    assert "job" not in new["naiad"]
    assert after.text["Description"] == old["prompt"]


@pytest.mark.parametrize(
    "comment",
    [
        '{"prompt": "\\ud800a", "seed": 4}',
        '{"prompt": "\\u0000a", "seed": 4}',
        '{"prompt": "a", "seed": 4, "scale": NaN}',
        '{"prompt": "a", "seed": 4, "scale": 1e999}',
        '{"prompt": null, "seed": 4}',
        '{"prompt": {"a": 1}, "seed": 4, "v4_prompt": {"a": [[]]}}',
        '{"a": ' + "[" * 900 + "]" * 900 + "}",
        "[1]",
    ],
)
def test_a_foreign_comment_is_carried_over_as_far_as_possible(client, comment):
    chunks = PngInfo()
    chunks.add_text("Comment", comment)
    sent = {"image": encode_base64(PIXELS, pnginfo=chunks)}
    inspection = inspect(client.post(UPSCALE, json=sent, headers={"Accept": "image/png"}).content)
    new = json.loads(inspection.text["Comment"])
    assert new["prompt"] in ("", "a")
    assert inspection.text["Description"] == new["prompt"]
    assert (new["width"], new.get("v4_prompt")) == (128, None)


def test_a_webp_that_would_be_too_wide_is_rejected_before_upscaling(client, fake_model):
    sent = {"image": encode_base64(np.zeros((4, 9000, 3), np.uint8)), "image_format": "webp"}
    assert "image_format: webp cannot hold 18000x8" in client.post(UPSCALE, json=sent).json()["message"]
    assert fake_model.jobs == []


def test_an_image_without_metadata_gets_a_comment_with_its_size(client):
    response = client.post(UPSCALE, json={"image": encode_base64(PIXELS)}, headers={"Accept": "image/png"})
    comment = json.loads(inspect(response.content).text["Comment"])
    assert (comment["prompt"], comment["width"], comment["height"]) == ("", 128, 192)
    assert set(comment["derived_from"]) == {"pixels"}


@pytest.mark.skipif(not SAMPLE.exists(), reason="genuine images are not available")
def test_the_nai_signature_is_not_carried_over(client, signing_key):
    sent = b64encode(SAMPLE.read_bytes()).decode()
    response = client.post(UPSCALE, json={"image": sent, "scale": 1.5}, headers={"Accept": "image/png"})
    inspection = inspect(response.content)
    assert {verdict.signer for verdict in check_signatures(inspection, signing_key.public, None)} == {"ours"}
    comment = json.loads(inspection.text["Comment"])
    assert "signed_hash" not in comment["derived_from"]["Comment"]
    assert inspection.text["Source"] != comment["derived_from"]["Source"]
    assert comment["prompt"] == json.loads(inspect(SAMPLE.read_bytes()).text["Comment"])["prompt"]


def upscale(client, pixels, **texts):
    """Fields of the upscale of an image with these texts, and its Comment."""
    chunks = PngInfo()
    for key, value in texts.items():
        chunks.add_text(key, value)
    sent = {"image": encode_base64(pixels, pnginfo=chunks)}
    fields = inspect(client.post(UPSCALE, json=sent, headers={"Accept": "image/png"}).content).text
    return fields, json.loads(fields["Comment"])


def test_source_metadata_over_the_limit_is_left_out(client):
    known = {"Comment": '{"prompt": "1girl", "seed": 4}', "Software": "NovelAI"}
    _, comment = upscale(client, PIXELS, Description="x" * 60_000, **known)
    assert (comment["prompt"], comment["seed"]) == ("1girl", 4)
    assert set(comment["derived_from"]) == {"pixels", *known}
    long = json.dumps({"prompt": "1girl", "references": ["x" * 60_000], "seed": 4})
    _, comment = upscale(client, PIXELS, Comment=long)
    assert (comment["prompt"], comment["seed"], set(comment["derived_from"])) == ("1girl", 4, {"pixels"})


def test_the_prompt_is_kept_wherever_it_stands(client):
    fields, comment = upscale(client, PIXELS, Description="1girl", Comment='{"uc": "bad", "steps": 4}')
    assert (fields["Description"], comment["prompt"], comment["uc"], comment["steps"]) == (
        "1girl",
        "1girl",
        "bad",
        4,
    )
    hidden = embed(
        np.tile(PIXELS, (4, 4, 1)), json.dumps({"Comment": '{"prompt": "1girl"}', "Description": "1girl"})
    )
    fields, comment = upscale(client, hidden, Software="www.example.test")
    assert (fields["Description"], comment["prompt"]) == ("1girl", "1girl")
    assert {"Comment", "Description", "Software"} < set(comment["derived_from"])
    fields, comment = upscale(client, PIXELS, parameters="1girl\nNegative prompt: bad\nSteps: 20")
    assert (fields["Description"], comment["uc"]) == ("1girl", "bad")


def test_v4_captions_are_kept(client):
    prompt = {
        "caption": {"base_caption": "2girls", "char_captions": [{"char_caption": "hat", "centers": [{}]}]}
    }
    source = {"prompt": "2girls", "v4_prompt": prompt, "v4_negative_prompt": {"caption": 5}}
    fields, comment = upscale(client, PIXELS, Comment=json.dumps(source))
    assert (fields["Description"], comment["prompt"]) == ("2girls", "2girls")
    assert flatten_v4_prompt(comment["v4_prompt"], "") == "2girls, hat"
    assert "v4_negative_prompt" not in comment
    assert json.loads(comment["derived_from"]["Comment"]) == source
