"""The form of a response, by the Accept header."""

import base64
import io
import json
from zipfile import ZipFile

import pytest
from fake_model import GENERATE, FakeModel, build_state, start_client
from PIL import Image
from starlette.datastructures import Headers

from server.api.responses import build_image_response, negotiate

OCTETS, OLD_ZIP, JSON = "binary/octet-stream", "application/x-zip-compressed", "application/json"
CHROME = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"
SMALL = {"width": 64, "height": 96, "seed": 4294967295}


@pytest.fixture(scope="module")
def client(model):
    state = build_state(model, FakeModel())
    with start_client(state) as client:
        yield client


@pytest.mark.parametrize(
    ("accept", "png", "webp"),
    [
        # a ZIP for clients that accept anything
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
        # the older name of the ZIP for clients that list it
        (OLD_ZIP, OLD_ZIP, OLD_ZIP),
        (f"*/*, {OLD_ZIP}", OLD_ZIP, OLD_ZIP),
        ("Application/X-Zip-Compressed;q=0.1", OLD_ZIP, OLD_ZIP),
        # JSON for clients that accept JSON but no ZIP
        (JSON, JSON, JSON),
        ("application/json; charset=utf-8", JSON, JSON),
        (f"{JSON}, image/png", JSON, JSON),
        (f"text/html, {JSON};q=0.9", JSON, JSON),
        # a bare image, in its own format
        ("image/png", "image/png", OCTETS),
        ("image/webp", OCTETS, "image/webp"),
        ("image/*", "image/png", "image/webp"),
        ("image/webp, image/png", "image/png", "image/webp"),
        ("image/png;q=0.5", "image/png", OCTETS),
        # quality 0 means not accepted
        ("*/*;q=0, image/png", "image/png", OCTETS),
        (f"{OLD_ZIP};q=0, */*", OCTETS, OCTETS),
        (f"{JSON};q=0.000, image/*", "image/png", "image/webp"),
        ("binary/octet-stream;q=0, image/png ; q=0.0, application/json", JSON, JSON),
        ("*/*;q=0", OCTETS, OCTETS),
        # anything else gets the ZIP, which every NAI client reads
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
    ids=lambda value: ascii(value)[:60],
)
def test_negotiate(accept, png, webp):
    headers = Headers({} if accept is None else {"accept": accept})
    assert (negotiate(headers, "png"), negotiate(headers, "webp")) == (png, webp)


@pytest.mark.parametrize(
    ("host", "accept", "zip_type", "expected"),
    [
        ("api.novelai.net", "*/*", "auto", OLD_ZIP),
        ("API.NovelAI.net:443", None, "auto", OLD_ZIP),
        ("api.novelai.net", CHROME, "auto", OLD_ZIP),
        ("image.novelai.net", "*/*", "auto", OCTETS),
        ("127.0.0.1:4242", "*/*", "auto", OCTETS),
        ("127.0.0.1:4242", "*/*", OLD_ZIP, OLD_ZIP),
        ("127.0.0.1:4242", None, OLD_ZIP, OLD_ZIP),
        ("api.novelai.net", "*/*", OCTETS, OCTETS),
        # a client that names a type gets it
        ("api.novelai.net", OCTETS, OLD_ZIP, OCTETS),
        ("image.novelai.net", OLD_ZIP, OCTETS, OLD_ZIP),
        ("api.novelai.net", "image/png", OLD_ZIP, "image/png"),
        ("api.novelai.net", JSON, OLD_ZIP, JSON),
    ],
)
def test_the_old_host_and_the_setting_name_the_old_type(host, accept, zip_type, expected):
    headers = Headers({"host": host} | ({} if accept is None else {"accept": accept}))
    assert negotiate(headers, "png", zip_type) == expected


def test_the_setting_reaches_the_response(model):
    state = build_state(model, FakeModel(), zip_type=OLD_ZIP)
    with start_client(state) as client:
        response = client.post(GENERATE, json={"input": "a", "parameters": SMALL})
    assert response.headers["content-type"] == OLD_ZIP


@pytest.mark.parametrize("kind", [OCTETS, OLD_ZIP])
@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_a_zip_holds_every_image_unchanged(kind, image_format):
    response = build_image_response(kind, [b"one", b"two"], [1, 2], image_format)
    assert response.headers["content-type"] == kind
    assert response.headers["content-disposition"] == 'attachment; filename="images.zip"'
    archive = ZipFile(io.BytesIO(response.body))
    assert archive.namelist() == [f"image_0.{image_format}", f"image_1.{image_format}"]
    assert [archive.read(name) for name in archive.namelist()] == [b"one", b"two"]


def test_json_holds_every_image_with_its_seed():
    response = build_image_response(JSON, [b"one", b"two"], [7, 8], "png")
    assert response.headers["content-type"] == JSON
    images = json.loads(bytes(response.body))["images"]
    assert [(base64.b64decode(image["image"]), image["index"], image["seed"]) for image in images] == [
        (b"one", 0, 7),
        (b"two", 1, 8),
    ]


def test_a_bare_image_is_the_first():
    response = build_image_response("image/webp", [b"one", b"two"], [7, 8], "webp")
    assert (response.headers["content-type"], response.body) == ("image/webp", b"one")
    assert "content-disposition" not in response.headers


def test_the_seeds_in_json_are_the_ones_used(client):
    body = {"input": "a", "parameters": SMALL | {"n_samples": 2}}
    images = client.post(GENERATE, json=body, headers={"Accept": JSON}).json()["images"]
    assert [image["seed"] for image in images] == [4294967295, 0]
    sizes = [Image.open(io.BytesIO(base64.b64decode(image["image"]))).size for image in images]
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
def test_the_body_has_the_media_type_of_its_header(client, image_format, accept, kind, head):
    body = {"input": "a", "parameters": SMALL | {"image_format": image_format}}
    response = client.post(GENERATE, json=body, headers={"Accept": accept})
    assert response.headers["content-type"] == kind
    assert response.content.startswith(head)
