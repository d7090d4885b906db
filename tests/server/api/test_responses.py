"""The form of an answer, by what `Accept` says."""

import base64
import io
import json
import zipfile

import pytest
from fastapi.testclient import TestClient
from painter import HERE, URL, Painter, house
from PIL import Image

from server.api.responses import negotiate, pictures_response
from server.app import create_app
from server.config.catalog import single_model_catalog
from server.engine.model import detect_model

OCTETS, OLD_ZIP, JSON = "binary/octet-stream", "application/x-zip-compressed", "application/json"
CHROME = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"
SMALL = {"width": 64, "height": 96, "seed": 4294967295}


@pytest.fixture(scope="module")
def client(demo_file):
    here = house(detect_model(single_model_catalog(demo_file)), Painter())
    with TestClient(create_app(here), base_url=HERE) as client:
        here.engine.wait_ready()
        yield client


@pytest.mark.parametrize(
    ("accept", "png", "webp"),
    [
        # a ZIP, for whoever takes anything
        (None, OCTETS, OCTETS),
        ("", OCTETS, OCTETS),
        ("*/*", OCTETS, OCTETS),
        (CHROME, OCTETS, OCTETS),
        (f"{JSON}, text/plain, */*", OCTETS, OCTETS),
        ("image/png,image/*;q=0.8,*/*;q=0.5", OCTETS, OCTETS),
        ("*/*;q=0.001", OCTETS, OCTETS),
        ("binary/octet-stream", OCTETS, OCTETS),
        ("BINARY/Octet-Stream", OCTETS, OCTETS),
        ("binary/*", OCTETS, OCTETS),
        # its old name, for whoever knows it
        (OLD_ZIP, OLD_ZIP, OLD_ZIP),
        (f"*/*, {OLD_ZIP}", OLD_ZIP, OLD_ZIP),
        ("Application/X-Zip-Compressed;q=0.1", OLD_ZIP, OLD_ZIP),
        # JSON, for whoever takes that and no ZIP
        (JSON, JSON, JSON),
        ("application/json; charset=utf-8", JSON, JSON),
        (f"{JSON}, image/png", JSON, JSON),
        (f"text/html, {JSON};q=0.9", JSON, JSON),
        # the bare picture, in its own format
        ("image/png", "image/png", OCTETS),
        ("image/webp", OCTETS, "image/webp"),
        ("image/*", "image/png", "image/webp"),
        ("image/webp, image/png", "image/png", "image/webp"),
        ("image/png;q=0.5", "image/png", OCTETS),
        # with quality 0 it is not wanted
        ("*/*;q=0, image/png", "image/png", OCTETS),
        (f"{OLD_ZIP};q=0, */*", OCTETS, OCTETS),
        (f"{JSON};q=0.000, image/*", "image/png", "image/webp"),
        ("binary/octet-stream;q=0, image/png ; q=0.0, application/json", JSON, JSON),
        ("*/*;q=0", OCTETS, OCTETS),
        # whatever else is asked for: what every client of NAI's reads
        ("application/zip", OCTETS, OCTETS),
        ("application/*", OCTETS, OCTETS),
        ("image/jpeg", OCTETS, OCTETS),
        ("text/html", OCTETS, OCTETS),
        ("image/png*", OCTETS, OCTETS),
        (",;,=;q", OCTETS, OCTETS),
        ("q=0", OCTETS, OCTETS),
        ("\xff/\x00, ;;", OCTETS, OCTETS),
        ("a/b," * 5000 + "image/png", OCTETS, OCTETS),
    ],
    ids=lambda told: ascii(told)[:60],
)
def test_what_accept_asks_for(accept, png, webp):
    assert (negotiate(accept, "png"), negotiate(accept, "webp")) == (png, webp)


@pytest.mark.parametrize("kind", [OCTETS, OLD_ZIP])
@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_a_zip_holds_every_picture_as_it_is(kind, image_format):
    found = pictures_response(kind, [b"one", b"two"], [1, 2], image_format)
    assert found.headers["content-type"] == kind
    assert found.headers["content-disposition"] == 'attachment; filename="images.zip"'
    archive = zipfile.ZipFile(io.BytesIO(found.body))
    assert archive.namelist() == [f"image_0.{image_format}", f"image_1.{image_format}"]
    assert [archive.read(name) for name in archive.namelist()] == [b"one", b"two"]


def test_json_holds_every_picture_with_its_seed():
    found = pictures_response(JSON, [b"one", b"two"], [7, 8], "png")
    assert found.headers["content-type"] == JSON
    images = json.loads(bytes(found.body))["images"]
    assert [(base64.b64decode(image["image"]), image["index"], image["seed"]) for image in images] == [
        (b"one", 0, 7),
        (b"two", 1, 8),
    ]


def test_a_bare_picture_is_the_first():
    found = pictures_response("image/webp", [b"one", b"two"], [7, 8], "webp")
    assert (found.headers["content-type"], found.body) == ("image/webp", b"one")
    assert "content-disposition" not in found.headers


def test_the_seeds_of_a_json_answer_are_the_ones_drawn_with(client):
    body = {"input": "a", "parameters": SMALL | {"n_samples": 2}}
    found = client.post(URL, json=body, headers={"Accept": JSON}).json()["images"]
    assert [image["seed"] for image in found] == [4294967295, 0]
    sizes = [Image.open(io.BytesIO(base64.b64decode(image["image"]))).size for image in found]
    assert sizes == [(64, 96), (64, 96)]


@pytest.mark.parametrize(
    ("image_format", "accept", "kind", "head"),
    [
        ("webp", "image/webp", "image/webp", b"RIFF"),
        ("webp", "image/png", OCTETS, b"PK"),
        ("png", "image/png", "image/png", b"\x89PNG"),
        ("png", "garbage", OCTETS, b"PK"),
    ],
)
def test_the_bytes_are_what_the_answer_calls_them(client, image_format, accept, kind, head):
    body = {"input": "a", "parameters": SMALL | {"image_format": image_format}}
    found = client.post(URL, json=body, headers={"Accept": accept})
    assert found.headers["content-type"] == kind
    assert found.content.startswith(head)
