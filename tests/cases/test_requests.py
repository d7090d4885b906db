"""Requests that users' clients send: how each is answered."""

import json
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from fake_model import BASE_URL, GENERATE, build_state, start_client
from PIL import Image, ImageOps

from server.api.account_pages import ACCOUNT_PAGES
from server.cli.bootstrap import build_access_rules
from server.config.settings import load_settings

PAGES = ("/", "/live", "/ready", "/models", "/key", *(f"/user/{page}" for page in ACCOUNT_PAGES))
CAT = {"input": "cat", "parameters": {"width": 64, "height": 64, "steps": 1, "seed": 7}}
ORIGINS = ("tauri://localhost", "chrome-extension://abcdefghijklmnop", "app://obsidian.md")


def read_rgb(data):
    with Image.open(BytesIO(data)) as image:
        return ImageOps.exif_transpose(image).convert("RGB").tobytes()


def test_whole_numbers_may_be_written_as_floats(client, file, fake_model):
    response = client.post(
        GENERATE, content=file("size_float.json").read_bytes(), headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 200, response.text
    (job,) = fake_model.jobs
    assert (job.steps, job.passes[0].width, job.passes[0].height, job.passes[0].seeds) == (1, 64, 64, (7,))


@pytest.mark.parametrize("name", ["uri_octet_stream.json", "uri_no_type.json", "base64_urlsafe.json"])
def test_an_image_is_read_from_every_spelling_of_base64(client, file, fake_model, name):
    body = json.loads(file(name).read_text())
    text = body["parameters"]["image"].rpartition(",")[2].replace("-", "+").replace("_", "/")
    spellings = {"as sent": body["parameters"]["image"], "plain": text}
    for image in spellings.values():
        sent = body | {"action": "img2img", "parameters": body["parameters"] | {"image": image}}
        response = client.post(GENERATE, json=sent)
        assert response.status_code == 200, response.text
    as_sent, plain = (job.passes[0].init.image for job in fake_model.jobs)
    assert as_sent == plain
    with Image.open(BytesIO(b64decode(text))) as image:
        assert as_sent.rgb == image.convert("RGB").resize((64, 64)).tobytes() or image.size != (64, 64)


@pytest.mark.parametrize("name", ["mask_turned.json", "image_turned.json"])
def test_image_and_mask_are_turned_upright(client, file, fake_model, name):
    body = json.loads(file(name).read_text())
    response = client.post(GENERATE, json=body)
    assert response.status_code == 200, response.text
    init = fake_model.jobs[0].passes[0].init
    mask = np.frombuffer(init.mask, np.uint8).reshape(24, 16)
    assert (mask[:6] == 255).all()  # rows 0 to 47
    assert (mask[6:] == 0).all()
    assert init.image.rgb == read_rgb(b64decode(body["parameters"]["image"]))


@pytest.mark.parametrize("path", PAGES)
def test_head_is_answered_without_a_body(client, path):
    response = client.head(path)
    assert (response.status_code, response.content) == (200, b"")


def test_two_slashes_before_a_path_are_one(client, fake_model):
    assert client.post(f"{BASE_URL}/{GENERATE}", json=CAT).status_code == 200
    assert len(fake_model.jobs) == 1


@pytest.mark.parametrize("origin", ["http://localhost:3000", *ORIGINS])
def test_a_listed_page_may_send_with_the_headers_it_asks_for(model, fake_model, origin):
    settings = load_settings(None, {"NAIAD_API_ORIGINS": origin}, {})
    state = build_state(model, fake_model, access=build_access_rules(settings))
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,x-requested-with",
    }
    with start_client(state) as client:
        preflight = client.options(GENERATE, headers=asked)
        response = client.post(GENERATE, json=CAT, headers={"Origin": origin})
    assert preflight.is_success
    assert "x-requested-with" in preflight.headers["access-control-allow-headers"].lower()
    assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, origin)
