"""A model's dialect, from a NAI client's request to the metadata of the image."""

import json

import pytest
from fake_model import BASE_URL, GENERATE, read_comment, unzip_images
from fastapi.testclient import TestClient
from sd15_files import write_small_sd15

from server.api.state import AppState
from server.app import create_app
from server.cli.bootstrap import build_engine, build_metadata_policy, build_request_policy
from server.config.catalog import single_model_catalog
from server.config.settings import Settings
from server.engine.model import detect_model

UNDESIRED = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, "
    "low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry"
)
BODY = {
    "input": "masterpiece, best quality, 1girl, {peace sign}, great quality",
    "model": "nai-diffusion",
    "action": "generate",
    "parameters": {
        "width": 128,
        "height": 128,
        "scale": 10,
        "sampler": "k_euler_ancestral",
        "steps": 1,
        "seed": 5,
        "n_samples": 1,
        "ucPreset": 0,
        "qualityToggle": True,
        "negative_prompt": f"nsfw, {UNDESIRED}, bad quality",
    },
}
ENCODED = {
    "prompt": "masterpiece, best quality, 1girl, {v}, high quality",
    "negative_prompt": f"nsfw, {UNDESIRED}",
    "characters": [],
}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    file = write_small_sd15(folder / "nai-anime-v1-full.safetensors")
    model = detect_model(single_model_catalog(file, prediction="eps"))
    settings = Settings(signing_key=folder / "signing.pem")
    state = AppState(
        build_engine(model, settings),
        build_request_policy(model, settings),
        build_metadata_policy(model, settings),
    )
    with TestClient(create_app(state), base_url=BASE_URL) as client:
        state.engine.wait_ready()
        yield client


def generate(client, **parameters):
    response = client.post(GENERATE, json=BODY | {"parameters": BODY["parameters"] | parameters})
    assert response.status_code == 200, response.text
    (image,) = unzip_images(response).values()
    return read_comment(response), image


def test_the_metadata_have_the_client_s_text_and_what_was_encoded(client):
    comment, image = generate(client)
    assert (comment["prompt"], image.info["Description"]) == (BODY["input"], BODY["input"])
    assert comment["uc"] == BODY["parameters"]["negative_prompt"]
    assert comment["naiad"]["encoded"] == ENCODED
    prompts = comment["naiad"]["job"]["prompts"]
    assert (prompts["positive"], prompts["negative"]) == (ENCODED["prompt"], ENCODED["negative_prompt"])
    assert json.dumps(ENCODED["prompt"])[1:-1] in image.info["Comment"]


def test_the_encoded_text_is_what_the_model_draws(client):
    translated, image = generate(client)
    own_words = {"dialect": False, "negative_prompt": ENCODED["negative_prompt"]}
    body = BODY | {"input": ENCODED["prompt"], "parameters": BODY["parameters"] | own_words}
    plain = client.post(GENERATE, json=body)
    (same,) = unzip_images(plain).values()
    assert same.convert("RGB").tobytes() == image.convert("RGB").tobytes()
    assert "encoded" not in read_comment(plain)["naiad"]
    _, other = generate(client, dialect=False)
    assert other.convert("RGB").tobytes() != image.convert("RGB").tobytes()
    assert translated["prompt"] == BODY["input"]


def test_models_shows_the_dialect(client):
    (card,) = client.get("/models").json()["models"]
    assert card["profile"] == "nai-v1"
    assert card["dialect"]["renamed_tags"] == "danbooru"
    assert card["dialect"]["default"] is True
    assert card["dialect"]["tags"]["great quality"] == "high quality"
