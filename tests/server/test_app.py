"""The application over HTTP, with a model that only paints."""

import io
import json
import zipfile
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient
from painter import HERE, URL, Painter, house, pictures
from PIL import Image

from server.app import create_app
from server.config.catalog import single_model_catalog
from server.engine.engine import Engine
from server.engine.model import detect_model

BODY = {"input": "1girl", "model": "nai-diffusion-3", "parameters": {"width": 256, "height": 256, "seed": 7}}


@pytest.fixture(scope="module")
def served(demo_file):
    return detect_model(single_model_catalog(demo_file))


@pytest.fixture
def painter():
    return Painter()


@pytest.fixture
def client(served, painter, signing_key):
    here = house(served, painter, signing_key)
    with TestClient(create_app(here), base_url=HERE) as client:
        here.engine.wait_ready()
        yield client


def test_the_answer_is_a_zip_as_nais_clients_insist_on(client):
    answer = client.post(URL, json=BODY | {"parameters": BODY["parameters"] | {"n_samples": 2}})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "binary/octet-stream"
    assert ".zip" in answer.headers["content-disposition"]
    found = pictures(answer)
    assert list(found) == ["image_0.png", "image_1.png"]
    assert [json.loads(picture.info["Comment"])["seed"] for picture in found.values()] == [7, 8]
    assert all(
        info.compress_type == zipfile.ZIP_STORED
        for info in zipfile.ZipFile(io.BytesIO(answer.content)).infolist()
    )


def test_exactly_image_png_gets_the_picture_bare(client, served):
    answer = client.post(URL, json=BODY, headers={"Accept": "image/png"})
    assert answer.headers["content-type"] == "image/png"
    picture = Image.open(io.BytesIO(answer.content))
    assert picture.size == (256, 256)
    assert picture.info["Source"] == f"Stable Diffusion XL {served.fingerprint}"
    browser = client.post(URL, json=BODY, headers={"Accept": "text/html,image/png,*/*;q=0.8"})
    assert browser.headers["content-type"] == "binary/octet-stream"


def test_a_request_without_anything_is_a_request_for_the_defaults(client):
    picture = pictures(client.post(URL, json={"parameters": {}}))["image_0.png"]
    assert picture.size == (832, 1216)


def test_strangers_keys_strings_for_numbers_and_a_missing_action_are_tolerated(client):
    parameters = {
        "width": 256,
        "height": 256,
        "steps": "5",
        "sm": "false",
        "autoSmea": True,
        "characterPrompts": [],
    }
    assert (
        client.post(URL, json={"input": "a", "recaptcha_token": "x", "parameters": parameters}).status_code
        == 200
    )


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"width": 100}, "parameters.width: 100 is not a whole number, a multiple of 32, from 64 to"),
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
def test_bad_values_are_answered_in_nais_envelope(client, parameters, said):
    answer = client.post(URL, json=BODY | {"parameters": parameters})
    assert answer.status_code == 400
    assert answer.json()["statusCode"] == 400
    assert said in answer.json()["message"]
    assert len(answer.text) < 600


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b'"text"', b'{"parameters": {"scale": NaN}}', b"\xff\xfe"]
)
def test_a_body_that_is_no_request_is_refused_in_words(client, body):
    answer = client.post(URL, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert set(answer.json()) == {"statusCode", "message"}
    assert client.post(URL, json=BODY).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", URL, 405), ("POST", "/ai/annotate-image", 404)],
)
def test_other_paths_and_methods_answer_in_the_envelope_too(client, method, path, status):
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["statusCode"] == status


def test_a_mistake_of_ours_is_a_500_that_tells_nothing(client, painter):
    painter.failure = RuntimeError("CUDA error at /home/somebody/model.safetensors")
    answer = client.post(URL, json=BODY)
    assert answer.status_code == 500
    assert "somebody" not in answer.text
    painter.failure = None
    assert client.post(URL, json=BODY).status_code == 200


def test_a_mix_of_nothing_is_the_clients_mistake(client, painter):
    from pipelines.errors import InvalidPrompt

    painter.failure = InvalidPrompt("every part of the '|' mix has weight 0")
    assert client.post(URL, json=BODY).status_code == 400


def test_text_that_was_cut_is_told_in_a_header(client):
    answer = client.post(URL, json=BODY | {"input": "cat " * 300})
    assert answer.headers["x-naiad-warning"] == "input: 300 tokens, cut after 225"


def test_health_and_models(client, served):
    assert client.get("/").status_code == 200
    assert client.get("/live").json() == {"status": "alive"}
    assert client.get("/ready").json()["state"] == "ready"
    (card,) = client.get("/models").json()["models"]
    assert card["hash"] == served.fingerprint
    assert card["prediction"] == "v"
    assert any("v_pred" in sentence for sentence in card["evidence"])
    assert "/" not in card["file"]


def test_while_the_model_loads_the_port_answers_503(served):
    import threading

    loaded = threading.Event()

    def load():
        assert loaded.wait(10)
        return Painter()

    here = replace(house(served, Painter()), engine=Engine(load))
    with TestClient(create_app(here), base_url=HERE) as client:
        assert client.get("/live").status_code == 200
        assert client.get("/ready").status_code == 503
        answer = client.post(URL, json=BODY)
        assert answer.status_code == 503
        assert "loading" in answer.json()["message"]
        assert answer.headers["retry-after"]
        loaded.set()
