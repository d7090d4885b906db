"""ControlNets over HTTP, with a fake model, and once with the demo model."""

import json
from base64 import b64encode
from hashlib import sha256
from io import BytesIO

import numpy as np
import pytest
from control_files import ARCHITECTURES, build_control, save_control
from fake_model import BASE_URL, GENERATE, FakeModel, build_state, read_comment, unzip_images
from fastapi.testclient import TestClient
from PIL import Image

from pipelines.weights.checkpoint import fingerprint
from server.api.memory import measure_work
from server.app import create_app
from server.config.catalog import Catalog, ModelEntry
from server.config.controlnets import ControlNetFile
from server.config.settings import Settings
from server.engine.loading import load_models
from server.engine.model import detect_model


def encode(color="white", size=(64, 64)):
    file = BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


FILE = encode()
MAP = b64encode(FILE).decode()


def draw_bar(x):
    """A map of 128 x 128 pixels with a white bar at `x`, in Base64."""
    image, file = Image.new("RGB", (128, 128)), BytesIO()
    image.paste("white", (x, 16, x + 32, 112))
    image.save(file, "PNG")
    return b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def control_file(tmp_path_factory):
    architecture, folder = ARCHITECTURES["sdxl"], tmp_path_factory.mktemp("control")
    network = build_control(architecture)
    for weight in network.controlnet_cond_embedding.parameters():  # random layers weaken a map
        weight *= 3 if weight.ndim > 1 else 0
    return save_control(folder / "soft-edges.safetensors", network, architecture)


@pytest.fixture(scope="module")
def model(demo_file, control_file):
    models = {"nai-diffusion-3": ModelEntry(path=demo_file)}
    networks = {"hed": (ControlNetFile(path=control_file, strength=2.0, end=0.9),)}
    return detect_model(Catalog(default="nai-diffusion-3", models=models, controlnets=networks))


@pytest.fixture
def fake_model():
    return FakeModel()


@pytest.fixture
def client(model, fake_model, signing_key):
    state = build_state(model, fake_model, signing_key)
    with TestClient(create_app(state), base_url=BASE_URL) as client:
        state.engine.wait_ready()
        yield client


def build(**parameters):
    sizes = {"width": 64, "height": 64, "steps": 2, "seed": 5, "scale": 5, "negative_prompt": "lowres"}
    constants = {"controlnet_strength": 1, "controlnet_model": None}
    return {"input": "1girl", "model": "nai-diffusion-3", "parameters": sizes | constants | parameters}


def test_the_metadata_names_the_network_and_the_hash_of_the_map(client, fake_model, control_file):
    plain = read_comment(client.post(GENERATE, json=build()))
    response = client.post(GENERATE, json=build(controlnet_condition=MAP, controlnet_strength=0.4))
    comment = read_comment(response)
    assert (comment["controlnet_model"], comment["controlnet_strength"]) == ("hed", 0.8)
    assert (plain["controlnet_model"], plain["controlnet_strength"]) == (None, 1.0)
    assert list(comment) == list(plain)  # NAI's keys in NAI's order
    (control,) = comment["naiad"]["job"]["controls"]
    expected = {"name": "hed", "hash": fingerprint(control_file), "strength": 0.8, "start": 0.0}
    assert control == expected | {"end": 0.9, "mode": None}
    assert comment["naiad"]["inputs"] == {"controls": [sha256(b"\xff" * 64 * 64 * 3).hexdigest()]}
    assert "controls" not in plain["naiad"]["job"]
    assert MAP not in json.dumps(comment)
    assert measure_work(fake_model.jobs[-1]) == 64 * 64 * 3


@pytest.mark.parametrize("name", ["controlnet_condition", "controls"])
def test_a_map_may_be_a_part_of_a_form_or_come_from_the_cache(client, fake_model, name):
    def make(image, key):
        if name == "controls":
            entry = {"model": "hed", "image": image, "image_cache_secret_key": key}
            return build(controls=[entry])
        return build(controlnet_condition=image, controlnet_condition_cache_secret_key=key)

    request = ("request", ("blob", json.dumps(make("map", "key")), "application/json"))
    response = client.post(GENERATE, files=[("map", ("blob", FILE, "image/png")), request])
    assert response.status_code == 200, response.text
    assert client.post(GENERATE, json=make(None, "key")).status_code == 200
    first, second = (job.controls for job in fake_model.jobs)
    assert first == second
    assert first[0].image.rgb == b"\xff" * 64 * 64 * 3
    response = client.post(GENERATE, json=make(None, "other"))
    assert response.json()["details"] == {"invalidKeys": ["other"]}


def test_models_shows_what_each_model_can_use(client, control_file):
    (card,) = client.get("/models").json()["models"]
    expected = {"name": "hed", "file": "soft-edges.safetensors", "hash": fingerprint(control_file)}
    assert card["controlnets"] == [expected | {"modes": None, "mode": None}]


def test_a_network_that_cannot_be_used_is_refused_by_name(client):
    for parameters, message in (
        (
            {"controlnet_condition": MAP, "controlnet_model": "canny"},
            "controlnet_model: 'canny' is not one of",
        ),
        ({"controlnet_condition": "AAAA"}, "controlnet_condition: not a PNG, WebP or JPEG image"),
        (
            {"controls": [{"image": MAP, "strength": 3}]},
            "controls.0.strength: 3 is not a number from -2 to 2",
        ),
    ):
        response = client.post(GENERATE, json=build(**parameters))
        assert response.status_code == 400
        assert response.json()["message"].startswith(f"parameters.{message}")


def test_the_demo_draws_as_before_without_a_map_and_at_strength_0(model, signing_key):
    runner = load_models((model,), Settings(device="cpu", threads=1))
    state = build_state(model, runner, signing_key)
    size = {"width": 128, "height": 128, "steps": 3}
    left, right = ({"controlnet_condition": draw_bar(x), "controlnet_strength": 0.1} for x in (16, 80))
    pixels = []
    with TestClient(create_app(state), base_url=BASE_URL) as client:
        state.engine.wait_ready()
        for parameters in ({}, left, left | {"controlnet_strength": 0}, right, {}, left):
            response = client.post(GENERATE, json=build(**size, **parameters))
            assert response.status_code == 200, response.text
            (image,) = unzip_images(response).values()
            pixels.append(np.asarray(image.convert("RGB")))
    plain, with_left, at_zero, with_right, plain_again, left_again = pixels
    assert np.array_equal(plain, at_zero)
    assert np.array_equal(plain, plain_again)
    assert np.array_equal(with_left, left_again)
    assert np.abs(plain.astype(int) - with_left).mean() > 1
    assert np.abs(with_right.astype(int) - with_left).mean() > 0.5
