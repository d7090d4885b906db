"""`POST /ai/generate-image/request-price`: nothing costs anything, and what cannot be generated has no price."""

import pytest
from fake_model import BASE_URL, FakeModel, build_state
from fastapi.testclient import TestClient

from server.app import create_app

PRICE = "/ai/generate-image/request-price"
PARAMETERS = {
    "width": 512, "height": 768, "scale": 11, "sampler": "k_euler_ancestral", "steps": 28, "n_samples": 1,
    "ucPreset": 0, "qualityToggle": True, "uc": "lowres", "strength": 0.7, "noise": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def fake_model():
    return FakeModel()


@pytest.fixture(scope="module")
def client(model, fake_model):
    return TestClient(create_app(build_state(model, fake_model)), base_url=BASE_URL)


def ask(client, prompts=("1girl",), **changes):
    request = {"input": list(prompts), "model": "nai-diffusion", "parameters": PARAMETERS | changes}
    return client.post(PRICE, json={"tier": "OPUS", "request": request})


@pytest.mark.parametrize(
    ("prompts", "changes"),
    [
        (("1girl",), {}),
        (("1girl", "2girls", ""), {}),
        (("a",) * 64, {"n_samples": 4}),
        (("a",), {"image": "not an image", "mask": "neither", "reference_image_multiple": ["x"]}),
        (
            ("a",),
            {
                "director_reference_images_cached": [{"data": "x"}],
                "controlnet_condition": "x",
                "controls": [1],
            },
        ),
    ],
)
def test_a_request_costs_nothing(client, fake_model, prompts, changes):
    response = ask(client, prompts, **changes)
    assert response.status_code == 200
    assert response.json() == {
        "requestEligibleForUnlimitedGeneration": True,
        "costPerPrompt": 0,
        "numPrompts": len(prompts),
        "freePrompts": len(prompts),
    }
    assert fake_model.jobs == []


@pytest.mark.parametrize(
    "body",
    [
        {"request": {"input": "1girl", "model": "nai-diffusion-3", "parameters": PARAMETERS}},
        {"input": "1girl", "model": "nai-diffusion-3", "parameters": PARAMETERS},
        {"request": {"input": ["1girl"]}, "tier": None},
        {"request": {}},
        {},
    ],
)
def test_an_incomplete_body_is_read_too(client, body):
    assert client.post(PRICE, json=body).json()["numPrompts"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 100}, "parameters.width: 100 is not"),
        ({"width": 4096, "height": 4096}, "parameters.width: 4096x4096 is 16777216 pixels"),
        ({"n_samples": 9}, "parameters.n_samples: 9 is not"),
        ({"width": 1024, "height": 1024, "n_samples": 5}, "parameters.n_samples: 5 images of 1024x1024"),
        ({"steps": 51}, "parameters.steps: 51 is not"),
        ({"sampler": "k_nothing"}, "parameters.sampler: "),
    ],
)
def test_what_cannot_be_generated_has_no_price(client, changes, message):
    response = ask(client, **changes)
    assert response.status_code == 400
    assert response.json()["message"].startswith(message)


@pytest.mark.parametrize("prompts", [[], ["a"] * 65, ["a", 1], 7, {"a": 1}, None])
def test_a_list_of_prompts_is_bounded(client, prompts):
    response = client.post(PRICE, json={"request": {"input": prompts, "parameters": PARAMETERS}})
    assert (response.status_code, response.json()["message"][:7]) == (400, "input: ")


@pytest.mark.parametrize("body", [{"request": [1]}, {"request": {"parameters": 7}}])
def test_a_section_that_is_no_object_is_refused(client, body):
    response = client.post(PRICE, json=body)
    assert response.status_code == 400
    assert "is not an object" in response.json()["message"]
