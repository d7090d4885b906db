"""OpenAI's image API: the same images as NAI's, and errors in OpenAI's form."""

import io
import json
from base64 import b64decode

import pytest
from fake_model import BASE_URL, FakeModel, build_state, read_comment, start_client
from fastapi.testclient import TestClient
from PIL import Image

from pipelines.errors import InvalidPrompt
from server.api.access import AccessRules
from server.api.openai import SIZES, find_nearest_size
from server.app import create_app

PATH = "/v1/images/generations"
BODY = {"prompt": "1girl", "seed": 7, "steps": 1, "size": "512x768"}


@pytest.fixture(scope="module")
def fake_model():
    return FakeModel()


@pytest.fixture(scope="module")
def client(model, fake_model, signing_key):
    state = build_state(model, fake_model, signing_key)
    with start_client(state) as client:
        yield client


def post(client, **changes):
    body = {name: value for name, value in (BODY | changes).items() if value is not ...}
    return client.post(PATH, json=body)


def read_image(response, index=0):
    return Image.open(io.BytesIO(b64decode(response.json()["data"][index]["b64_json"])))


def test_the_images_are_those_of_nais_path(client):
    response = post(client, n=2)
    assert response.status_code == 200
    assert "x-naiad-warning" not in response.headers
    body = response.json()
    assert (body["size"], body["output_format"], len(body["data"])) == ("512x768", "png", 2)
    comments = [json.loads(read_image(response, index).info["Comment"]) for index in (0, 1)]
    assert [comment["seed"] for comment in comments] == [7, 8]
    assert {entry["revised_prompt"] for entry in body["data"]} == {comments[0]["prompt"]}
    parameters = {"width": 512, "height": 768, "seed": 7, "steps": 1, "n_samples": 2}
    parameters |= {"qualityToggle": True, "ucPreset": 0}
    nai = client.post("/ai/generate-image", json={"input": "1girl", "parameters": parameters})
    differs = {"signed_hash", "naiad", "generation_time"}
    same = read_comment(nai)
    assert {key: same[key] for key in same.keys() - differs} == {
        key: comments[0][key] for key in comments[0].keys() - differs
    }


def test_a_prompt_alone_gets_the_models_own_size(client):
    response = post(client, seed=..., size=..., model=None, n=None)
    assert read_image(response).size == (832, 1216)
    assert post(client, size="auto").json()["size"] == "832x1216"


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [("1024x1024", (1024, 1024)), ("256x256", (640, 640)), ("512x512", (640, 640)), ("1024x1536", (1024, 1536)),
     ("1792x1024", (1920, 1088)), ("1024x1792", (1088, 1920)), ("1280x720", (1216, 832)), ("4096x4096", (1472, 1472)),
     ("99999x10", (1920, 1088)), ("10x99999", (1088, 1920))],
)  # fmt: skip
def test_a_size_becomes_the_nearest_of_nais(asked, nearest):
    assert find_nearest_size(asked) == nearest


def test_nais_own_sizes_stay():
    assert [find_nearest_size(f"{width}x{height}") for width, height in SIZES] == [*SIZES]


@pytest.mark.parametrize("size", ["9x9", "0x0", "100000x1024", "-1x5", "1024", 1024, "1024X1024"])
def test_a_size_that_is_none_is_refused_with_the_limits(client, size):
    error = post(client, size=size).json()["error"]
    assert error["param"] == "size"
    assert 'is not "auto" or two sides of 10 to 99999 pixels' in error["message"]


def test_a_substituted_size_and_fields_without_effect_are_named(client):
    response = post(
        client, size="512x512", quality="hd", style="vivid", user="u", moderation="auto", watermark=1
    )
    warning = response.headers["x-naiad-warning"]
    assert "size: 512x512 is answered by 640x640" in warning
    assert "quality: 'hd' has no effect here" in warning
    assert "style: 'vivid' has no effect here" in warning
    assert "watermark: 1 has no effect here" in warning
    assert "user" not in warning
    assert "moderation" not in warning
    assert "prompt: 312 tokens, cut" in post(client, prompt="cat " * 300).headers["x-naiad-warning"]
    many = post(client, **{f"x{number}": "é\r\n" * 99 for number in range(99)})
    assert len(many.headers["x-naiad-warning"]) <= 1000


def test_extensions_and_the_format_are_used(client, fake_model):
    response = post(client, negative_prompt="lowres", scale=7.5, sampler="k_dpmpp_2m", output_format="webp")
    assert read_image(response).format == "WEBP"
    job = fake_model.jobs[-1]
    assert (job.prompts.negative, job.sampler, job.guidance.scale) == ("lowres", "k_dpmpp_2m", 7.5)


@pytest.mark.parametrize(
    ("changes", "param", "message"),
    [
        ({"prompt": ...}, "prompt", "prompt: is required"),
        ({"prompt": ""}, "prompt", "prompt: '' is not a text of 1 to"),
        ({"n": 9}, "n", "n: 9 is not a whole number from 1 to 8"),
        ({"n": 5, "size": "1472x1472"}, "n", "n: 5 images of 1472x1472; at most 4"),
        ({"size": "large"}, "size", "size: 'large' is not \"auto\" or two sides"),
        ({"size": "0x0"}, "size", "size: '0x0' is not"),
        ({"size": 1024}, "size", "size: 1024 is not"),
        (
            {"response_format": "url"},
            "response_format",
            "response_format: 'url' is not b64_json; this server keeps",
        ),
        ({"background": "transparent"}, "background", "background: 'transparent' is not auto or opaque"),
        ({"output_format": "jpeg"}, "output_format", "output_format: 'jpeg' is not png or webp"),
        ({"stream": True}, "stream", "stream: true is not false; this path does not stream"),
        ({"partial_images": 2}, "partial_images", "partial_images: 2 is not 0"),
        ({"steps": 99}, "steps", "steps: 99 is not a whole number from 1 to 50"),
        ({"sampler": "k_eular"}, None, "did you mean 'k_euler'"),
    ],
)
def test_a_wrong_value_is_refused_in_openais_form_and_words(client, changes, param, message):
    response = post(client, **changes)
    assert response.status_code == 400
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert message in error["message"]
    assert (error["type"], error["code"]) == ("invalid_request_error", None)
    assert error["param"] == param or param is None


@pytest.mark.parametrize(
    ("method", "path", "status", "kind", "code"),
    [
        ("GET", PATH, 405, "invalid_request_error", None),
        ("GET", "/v1/nothing", 404, "invalid_request_error", "not_found"),
        ("GET", "/v1/models/gpt-image-1", 404, "invalid_request_error", "not_found"),
        ("POST", "/v1/images/edits", 404, "invalid_request_error", "not_found"),
    ],
)
def test_other_errors_have_the_form_too(client, method, path, status, kind, code):
    response = client.request(method, path)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (status, kind, code)


def test_a_failed_job_is_a_server_error_and_a_bad_mix_is_not(client, fake_model, monkeypatch):
    monkeypatch.setattr(fake_model, "failure", RuntimeError("CUDA error at /root/model"))
    response = post(client)
    assert (response.status_code, response.json()["error"]["type"]) == (500, "server_error")
    assert "CUDA" not in response.text
    monkeypatch.setattr(fake_model, "failure", InvalidPrompt("every part has weight 0"))
    assert post(client).json()["error"]["message"] == "every part has weight 0"


def test_models_are_the_ids_of_the_loaded_one(client):
    (entry,) = client.get("/v1/models").json()["data"]
    assert entry == client.get("/v1/models/nai-diffusion-3").json()
    assert (entry["id"], entry["object"]) == ("nai-diffusion-3", "model")


def test_nais_model_ids_are_passed_on_and_others_mean_the_loaded_model(client):
    assert "answered by" in post(client, model="nai-diffusion-9").headers["x-naiad-warning"]
    assert "x-naiad-warning" not in post(client, model="gpt-image-1").headers


def test_a_token_is_needed_where_nais_paths_need_one(model):
    rules = AccessRules(("pst-secret-token",))
    client = TestClient(create_app(build_state(model, FakeModel(), access=rules)), base_url=BASE_URL)
    for response in (client.post(PATH, json=BODY), client.get("/v1/models"), client.get("/v1")):
        assert response.status_code in (401, 404)
    error = client.post(f"{BASE_URL}/{PATH}", json=BODY).json()["error"]
    assert (error["code"], error["message"]) == ("invalid_api_key", "Unauthorized")
    assert client.get("/v1/models", headers={"Authorization": "Bearer pst-secret-token"}).status_code == 200
