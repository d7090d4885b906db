"""Vibe transfer over HTTP, with a fake model, and once with the demo model."""

import json
from base64 import b64encode
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from fake_model import GENERATE, build_state, read_comment, start_client, unzip_images
from PIL import Image

from demo.checkpoint import VIBE
from pipelines.job import EncodedVibe, RgbImage, VibeJob
from server.config.catalog import single_model_catalog
from server.config.settings import Settings
from server.engine.loading import load_models
from server.engine.model import detect_model
from server.request.encoded_vibe import pack_vibe

ENCODE = "/ai/encode-vibe"


def encode_image(color="red"):
    file = BytesIO()
    Image.new("RGB", (64, 64), color).save(file, "PNG")
    return file.getvalue()


IMAGE = b64encode(encode_image()).decode()


@pytest.fixture(scope="module")
def model(demo_file):
    return detect_model(single_model_catalog(demo_file, vibe=VIBE))


@pytest.fixture
def state(model, fake_model, signing_key):
    state = build_state(model, fake_model, signing_key)
    metadata = replace(state.metadata, vibe_files=model.vibe.files)
    return replace(state, metadata=metadata, policy=replace(state.policy, vibe_secret=b"s" * 32))


@pytest.fixture
def client(state):
    with start_client(state) as client:
        yield client


def build(**parameters):
    sizes = {"width": 64, "height": 64, "steps": 2, "seed": 5, "scale": 5, "negative_prompt": "lowres"}
    return {"input": "1girl", "model": "nai-diffusion-3", "parameters": sizes | parameters}


def encode(client, **fields):
    return client.post(ENCODE, json={"image": IMAGE, "model": "nai-diffusion-4-5-full", **fields})


@pytest.mark.parametrize("name", ["information_extracted", "informationExtracted"])
def test_an_encoded_vibe_comes_back_in_a_request(client, fake_model, name):
    response = encode(client, **{name: 0.7})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/binary"
    assert response.headers["x-naiad-warning"].startswith("model: 'nai-diffusion-4-5-full' is answered by")
    (job,) = fake_model.jobs
    assert isinstance(job, VibeJob)
    assert (job.image.width, job.image.height, job.information_extracted) == (448, 448, 0.7)
    vibes = [b64encode(response.content).decode()]
    body = build(reference_image_multiple=vibes, reference_strength_multiple=[0.5])
    response = client.post(GENERATE, json=body | {"model": "nai-diffusion-4-5-full"})
    assert response.status_code == 200, response.text
    (vibe,) = fake_model.jobs[-1].vibes
    assert isinstance(vibe.source, EncodedVibe)
    assert (vibe.strength, vibe.information_extracted) == (0.5, 0.7)


def test_an_image_may_be_a_part_of_a_form_or_come_from_the_cache(client, fake_model):
    body = build(reference_image_multiple_cached=[{"cache_secret_key": "key", "data": "ref_multiple_0"}])
    request = ("request", ("blob", json.dumps(body), "application/json"))
    part = ("ref_multiple_0", ("blob", encode_image(), "image/png"))
    assert client.post(GENERATE, files=[part, request]).status_code == 200
    again = build(reference_image_multiple_cached=[{"cache_secret_key": "key"}])
    assert client.post(GENERATE, json=again).status_code == 200
    assert fake_model.jobs[0].vibes == fake_model.jobs[1].vibes
    assert isinstance(fake_model.jobs[0].vibes[0].source, RgbImage)


def test_an_encoded_vibe_is_kept_in_the_cache_too(client, fake_model):
    data = b64encode(encode(client).content).decode()
    for entry in ({"cache_secret_key": "vibe", "data": data}, {"cache_secret_key": "vibe"}):
        assert client.post(GENERATE, json=build(reference_image_multiple_cached=[entry])).status_code == 200
    assert fake_model.jobs[-1].vibes == fake_model.jobs[-2].vibes != ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": None}, "image: is required: an image in Base64"),
        ({"image": "AAAA"}, "image: not a PNG, WebP or JPEG image"),
        ({"information_extracted": 2}, "information_extracted: 2 is not a number from 0 to 1"),
        ({"mask": IMAGE}, "mask: remove it; the entire image is encoded"),
    ],
)
def test_what_cannot_be_encoded_is_refused(client, fields, message):
    response = encode(client, **fields)
    assert (response.status_code, response.json()["message"]) == (400, message)


def test_the_metadata_tells_strengths_and_hashes_but_not_the_image(client):
    plain = read_comment(client.post(GENERATE, json=build()))
    several = {"reference_image_multiple": [IMAGE, IMAGE], "reference_strength_multiple": [1, -0.25]}
    comment = read_comment(client.post(GENERATE, json=build(**several)))
    assert comment["reference_strength_multiple"] == [1.0, -0.25]
    assert comment["reference_information_extracted_multiple"] == [1.0, 1.0]
    assert list(comment) == list(plain)  # NAI's keys in NAI's order
    about = comment["naiad"]
    assert [len(digest) for digest in about["inputs"]["vibes"]] == [64, 64]
    assert len(about["files"]["vibe"]) == 8
    assert about["job"]["vibes"][1] == {"strength": -0.25, "information_extracted": 1.0, "encoded": False}
    assert IMAGE not in json.dumps(comment)
    assert plain["reference_strength_multiple"] == []
    assert "vibes" not in plain["naiad"]["job"]
    assert "vibe" not in plain["naiad"]["files"]
    assert plain["naiad"]["inputs"] == {}


def test_models_shows_the_adapter(client, model):
    (card,) = client.get("/models").json()["models"]
    assert card["vibe"] == {"file": VIBE.name, "kind": "base", "tokens": 8, "hash": model.vibe.hash}


def test_the_demo_draws_the_same_from_an_image_as_from_its_encoding(model, signing_key):
    """And what is refused in between leaves no trace."""
    state = build_state(model, load_models((model,), Settings(device="cpu", threads=1)), signing_key)
    size = {"width": 128, "height": 128, "steps": 4}
    with start_client(state) as client:
        encoded = b64encode(encode(client).content).decode()
        other = replace(model, id="other", vibe=replace(model.vibe, files={"vibe": "00000000"}))
        foreign = b64encode(pack_vibe(EncodedVibe(8, 96, bytes(3072)), other, b"")).decode()
        refused = {"reference_image": IMAGE, "reference_strength": 1e9}, {"reference_image": foreign}
        pixels, messages = [], []
        for references in ({}, {"reference_image": IMAGE}, {"reference_image": encoded}, *refused, {}):
            response = client.post(GENERATE, json=build(**size, **references))
            if references in refused:
                assert response.status_code == 400
                messages.append(response.json()["message"])
                continue
            (image,) = unzip_images(response).values()
            pixels.append(np.asarray(image.convert("RGB")))
    assert "1000000000.0 is not a number from -2 to 2" in messages[0]
    assert "encoded for the model 'other' with another image adapter" in messages[1]
    assert np.array_equal(pixels[1], pixels[2])
    assert np.array_equal(pixels[0], pixels[3])
    assert not np.array_equal(pixels[0], pixels[1])
