"""Upscaling over HTTP, with a painter that only repeats pixels."""

import json
from base64 import b64encode
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from painter import HERE, Painter, house, pictures
from paths import SHARED
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from server.app import create_app
from server.config.catalog import single_model_catalog
from server.engine.model import detect_model
from server.picture.inspection import check_signatures, inspect

URL = "/ai/upscale"
SAMPLE = SHARED / "samples" / "v3_img2img_2024-07.png"
PIXELS = np.random.default_rng(3).integers(0, 256, (96, 64, 3), np.uint8)


def base64_of(pixels, **more):
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **more)
    return b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def served(demo_file):
    return detect_model(single_model_catalog(demo_file))


@pytest.fixture
def painter():
    return Painter()


@pytest.fixture
def client(served, painter, signing_key):
    with client_of(house(served, painter, signing_key)) as client:
        yield client


def client_of(here):
    return TestClient(create_app(here), base_url=HERE)


@pytest.mark.parametrize(
    ("sent", "size"),
    [
        ({"width": 64, "height": 96, "scale": 2}, (128, 192)),
        ({"width": 64, "height": 96, "scale": 4.0}, (256, 384)),
        ({"scale": "1.5"}, (96, 144)),
        ({"model": "nai-diffusion-4-5-full", "declared_blur_sigma": 1}, (128, 192)),
    ],
)
def test_both_forms_are_answered_with_one_png_in_a_zip(client, sent, size):
    answer = client.post(URL, json={"image": base64_of(PIXELS)} | sent)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "binary/octet-stream"
    assert "Lanczos" in answer.headers["x-naiad-warning"]
    (picture,) = pictures(answer).values()
    assert picture.size == size
    assert picture.format == "PNG"
    if size == (128, 192):
        assert (np.asarray(picture.convert("RGB")) == PIXELS.repeat(2, 0).repeat(2, 1)).all()


def test_webp_and_a_bare_picture_can_be_had(client):
    headers = {"Accept": "image/webp"}
    answer = client.post(URL, json={"image": base64_of(PIXELS), "image_format": "webp"}, headers=headers)
    assert answer.headers["content-type"] == "image/webp"
    assert inspect(answer.content).size == (128, 192)


def test_a_network_is_named_and_nothing_is_warned_of(served, painter, signing_key):
    here = house(replace(served, upscaler=Path("anime6.safetensors")), painter, signing_key)
    with client_of(here) as client:
        answer = client.post(URL, json={"image": base64_of(PIXELS)})
    assert "x-naiad-warning" not in answer.headers
    (picture,) = pictures(answer).values()
    told = json.loads(picture.info["Comment"])["naiad"]
    assert told["upscale"] == {"width": 128, "height": 192, "by": "anime6.safetensors"}


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ({}, "image: is required"),
        ({"image": ""}, "image: is required"),
        ({"image": "http://169.254.169.254/"}, "image: not Base64"),
        ({"image": "AAAA"}, "image: not a PNG, WebP or JPEG image"),
        ({"image": base64_of(PIXELS), "scale": 1}, "scale: 1 is not a number above 1, at most 4"),
        ({"image": base64_of(PIXELS), "scale": 8}, "scale: 8 is not"),
        ({"image": base64_of(np.zeros((3000, 1000, 3), np.uint8)), "scale": 4}, "48000000 pixels; at most"),
        (
            {"image": base64_of(np.zeros((2000, 2000, 3), np.uint8))},
            "image: 2000 x 2000 is more than 3145728 pixels",
        ),
    ],
)
def test_what_cannot_be_enlarged_is_refused_by_name(client, painter, sent, said):
    answer = client.post(URL, json=sent)
    assert answer.status_code == 400
    assert said in answer.json()["message"]
    assert painter.jobs == []


def test_an_enlarged_picture_is_ours_and_tells_where_it_is_from(client, signing_key):
    drawn = client.post(
        "/ai/generate-image",
        json={"input": "1girl", "parameters": {"width": 256, "height": 256, "seed": 3}},
        headers={"Accept": "image/png"},
    ).content
    answer = client.post(URL, json={"image": b64encode(drawn).decode()}, headers={"Accept": "image/png"})
    before, after = inspect(drawn), inspect(answer.content)
    assert {verdict.signer for verdict in check_signatures(after, signing_key.public, None)} == {"ours"}
    told, source = json.loads(after.text["Comment"]), json.loads(before.text["Comment"])
    assert (told["prompt"], told["seed"], told["width"], told["height"]) == (source["prompt"], 3, 512, 512)
    assert told["derived_from"]["Source"] == before.text["Source"]
    kept = json.loads(told["derived_from"]["Comment"])
    assert kept == {key: value for key, value in source.items() if key != "signed_hash"}
    assert "job" not in told["naiad"]
    assert after.text["Description"] == source["prompt"]


@pytest.mark.parametrize(
    "told",
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
def test_what_a_stranger_wrote_is_carried_as_far_as_it_can_be(client, told):
    chunks = PngInfo()
    chunks.add_text("Comment", told)
    sent = {"image": base64_of(PIXELS, pnginfo=chunks)}
    found = inspect(client.post(URL, json=sent, headers={"Accept": "image/png"}).content)
    comment = json.loads(found.text["Comment"])
    assert comment["prompt"] in ("", "a")
    assert found.text["Description"] == comment["prompt"]
    assert (comment["width"], comment.get("v4_prompt")) == (128, None)


def test_a_webp_that_would_be_too_long_is_refused_before_it_is_made(client, painter):
    sent = {"image": base64_of(np.zeros((4, 9000, 3), np.uint8)), "image_format": "webp"}
    assert "image_format: webp cannot hold 18000x8" in client.post(URL, json=sent).json()["message"]
    assert painter.jobs == []


def test_a_picture_without_a_word_gets_a_comment_of_its_size_alone(client):
    answer = client.post(URL, json={"image": base64_of(PIXELS)}, headers={"Accept": "image/png"})
    told = json.loads(inspect(answer.content).text["Comment"])
    assert (told["prompt"], told["width"], told["height"]) == ("", 128, 192)
    assert set(told["derived_from"]) == {"pixels"}


@pytest.mark.skipif(not SAMPLE.exists(), reason="genuine pictures are not here")
def test_nai_s_signature_is_not_carried_over(client, signing_key):
    sent = b64encode(SAMPLE.read_bytes()).decode()
    answer = client.post(URL, json={"image": sent, "scale": 1.5}, headers={"Accept": "image/png"})
    found = inspect(answer.content)
    assert {verdict.signer for verdict in check_signatures(found, signing_key.public, None)} == {"ours"}
    told = json.loads(found.text["Comment"])
    assert "signed_hash" not in told["derived_from"]["Comment"]
    assert found.text["Source"] != told["derived_from"]["Source"]
    assert told["prompt"] == json.loads(inspect(SAMPLE.read_bytes()).text["Comment"])["prompt"]


def test_a_source_that_says_too_much_is_kept_as_a_hash(client):
    told = PngInfo()
    told.add_text("Description", "x" * 60_000)
    answer = client.post(
        URL, json={"image": base64_of(PIXELS, pnginfo=told)}, headers={"Accept": "image/png"}
    )
    assert set(json.loads(inspect(answer.content).text["Comment"])["derived_from"]) == {"pixels"}
