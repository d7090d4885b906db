"""The application over HTTP, with a fake model."""

import io
import json
import zipfile
from dataclasses import replace
from threading import Event

import pytest
from fake_model import BASE_URL, GENERATE, FakeModel, build_state, start_client, unzip_images
from fastapi.testclient import TestClient
from PIL import Image
from waiting import LIMIT

from pipelines.errors import InvalidPrompt
from server.app import create_app
from server.engine.engine import Engine

BODY = {"input": "1girl", "model": "nai-diffusion-3", "parameters": {"width": 256, "height": 256, "seed": 7}}


@pytest.fixture
def client(model, fake_model, signing_key):
    state = build_state(model, fake_model, signing_key)
    with start_client(state) as client:
        yield client


def test_the_response_is_a_zip_as_nai_clients_require(client):
    response = client.post(GENERATE, json=BODY | {"parameters": BODY["parameters"] | {"n_samples": 2}})
    assert response.status_code == 200
    assert response.headers["content-type"] == "binary/octet-stream"
    assert ".zip" in response.headers["content-disposition"]
    images = unzip_images(response)
    assert list(images) == ["image_0.png", "image_1.png"]
    assert [json.loads(image.info["Comment"])["seed"] for image in images.values()] == [7, 8]
    assert all(
        info.compress_type == zipfile.ZIP_STORED
        for info in zipfile.ZipFile(io.BytesIO(response.content)).infolist()
    )


def test_accept_image_png_alone_gets_a_bare_image(client, model):
    response = client.post(GENERATE, json=BODY, headers={"Accept": "image/png"})
    assert response.headers["content-type"] == "image/png"
    image = Image.open(io.BytesIO(response.content))
    assert image.size == (256, 256)
    assert image.info["Source"] == f"Stable Diffusion XL {model.fingerprint}"
    browser = client.post(GENERATE, json=BODY, headers={"Accept": "text/html,image/png,*/*;q=0.8"})
    assert browser.headers["content-type"] == "binary/octet-stream"


def test_empty_parameters_give_the_defaults(client):
    image = unzip_images(client.post(GENERATE, json={"parameters": {}}))["image_0.png"]
    assert image.size == (832, 1216)


def test_unknown_keys_strings_for_numbers_and_a_missing_action_are_accepted(client):
    parameters = {
        "width": 256,
        "height": 256,
        "steps": "5",
        "sm": "false",
        "autoSmea": True,
        "characterPrompts": [],
    }
    body = {"input": "a", "recaptcha_token": "x", "parameters": parameters}
    assert client.post(GENERATE, json=body).status_code == 200


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"width": 100}, "parameters.width: 100 is not a multiple of 32 from 64 to"),
        ({"height": 32}, "parameters.height: 32 is not"),
        ({"steps": 51}, "parameters.steps"),
        ({"steps": 0}, "parameters.steps"),
        ({"scale": -1}, "parameters.scale"),
        ({"scale": "much"}, "parameters.scale"),
        ({"n_samples": 9}, "parameters.n_samples"),
        ({"sampler": "k_eular"}, "did you mean 'k_euler'"),
        ({"cfg_rescale": 1.5}, "parameters.cfg_rescale"),
        ({"negative_prompt": "x" * 50_000}, "parameters.negative_prompt"),
    ],
)
def test_wrong_values_are_answered_in_the_envelope(client, parameters, message):
    response = client.post(GENERATE, json=BODY | {"parameters": parameters})
    assert response.status_code == 400
    assert response.json()["statusCode"] == 400
    assert message in response.json()["message"]
    assert len(response.text) < 600


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b'"text"', b'{"parameters": {"scale": NaN}}', b"\xff\xfe"]
)
def test_a_body_that_is_not_a_request_is_refused(client, body):
    response = client.post(GENERATE, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert set(response.json()) == {"statusCode", "message"}
    assert client.post(GENERATE, json=BODY).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", GENERATE, 405), ("POST", "/ai/nothing", 404)],
)
def test_other_paths_and_methods_are_answered_in_the_envelope(client, method, path, status):
    response = client.request(method, path)
    assert response.status_code == status
    assert response.json()["statusCode"] == status


def test_an_internal_error_is_a_500_without_details(client, fake_model):
    fake_model.failure = RuntimeError("CUDA error at /home/somebody/model.safetensors")
    response = client.post(GENERATE, json=BODY)
    assert response.status_code == 500
    assert "somebody" not in response.text
    fake_model.failure = None
    assert client.post(GENERATE, json=BODY).status_code == 200


def test_a_mix_of_zero_weights_is_a_400(client, fake_model):
    fake_model.failure = InvalidPrompt("every part of the '|' mix has weight 0")
    assert client.post(GENERATE, json=BODY).status_code == 400


def test_a_truncated_prompt_is_reported_in_a_header(client):
    response = client.post(GENERATE, json=BODY | {"input": "cat " * 300})
    assert response.headers["x-naiad-warning"] == "input: 300 tokens, cut after 225"


def test_health_and_models(client, model):
    assert client.get("/").status_code == 200
    assert client.get("/live").json() == {"status": "alive"}
    assert client.get("/ready").json()["state"] == "ready"
    (card,) = client.get("/models").json()["models"]
    assert card["hash"] == model.fingerprint
    assert card["prediction"] == "v"
    assert any("v_pred" in sentence for sentence in card["evidence"])
    assert "/" not in card["file"]


def test_key_is_the_signing_key_or_404(client, model, signing_key):
    assert client.get("/key").json() == {"algorithm": "Ed25519", "key": signing_key.public}
    unsigned = TestClient(create_app(build_state(model, FakeModel())), base_url=BASE_URL)
    response = unsigned.get("/key")
    assert (response.status_code, response.json()["statusCode"]) == (404, 404)


def test_requests_get_503_while_the_model_loads(model):
    loaded = Event()

    def load():
        assert loaded.wait(LIMIT)
        return FakeModel()

    state = replace(build_state(model, FakeModel()), engine=Engine(load))
    with TestClient(create_app(state), base_url=BASE_URL) as client:
        assert client.get("/live").status_code == 200
        assert client.get("/ready").status_code == 503
        response = client.post(GENERATE, json=BODY)
        assert response.status_code == 503
        assert "loading" in response.json()["message"]
        assert response.headers["retry-after"]
        loaded.set()


def test_requests_are_resolved_for_the_model_as_it_is_known_after_loading(model, fake_model, signing_key):
    detection = replace(model.detection, prediction="eps", zsnr=False)
    fake_model.model = replace(
        model, entry=model.entry.model_copy(update={"profile": "pony-v6"})
    ).with_detection(detection)
    state = build_state(model, fake_model, signing_key)
    with start_client(state) as client:
        (card,) = client.get("/models").json()["models"]
        assert (card["prediction"], card["profile"]) == ("eps", "pony-v6")
        client.post(GENERATE, json={"input": "a", "parameters": {"width": 64, "height": 64}})
        assert fake_model.jobs[0].sampler == "k_euler_ancestral" != model.profile.defaults.sampler
