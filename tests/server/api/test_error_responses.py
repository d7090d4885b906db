"""Error responses, always in one form."""

import difflib
import json
import re

import pytest
from fake_model import BASE_URL, GENERATE, FakeModel, build_state, start_client
from fastapi.testclient import TestClient

from pipelines.errors import InvalidPrompt, NotFinite, UnknownName, WeightsError
from server.api import exchange
from server.api.access import AccessRules
from server.api.error_responses import INTERNAL_ERROR
from server.app import create_app
from server.errors import Overloaded, Unavailable
from server.request import rejection

JSON = "application/json"
BODY = {"input": "a", "parameters": {"width": 64, "height": 64}}


@pytest.fixture(scope="module")
def fake_model():
    return FakeModel()


@pytest.fixture(scope="module")
def client(model, fake_model):
    state = build_state(model, fake_model, body_limit=1)
    with pytest.MonkeyPatch.context() as patch, start_client(state) as client:
        patch.setattr(exchange, "DRAIN_TIMEOUT", 0.01)
        yield client


def read_message(response, status):
    """The message of an error response, after checking what all of them have in common."""
    assert response.status_code == status
    assert response.headers["content-type"] == JSON
    assert set(response.json()) == {"statusCode", "message"}
    assert response.json()["statusCode"] == status
    assert response.text.isascii()
    assert len(response.text) < 700
    assert not re.search(r"pydantic|starlette|Traceback|\.py\b|errors\.|line \d|site-packages", response.text)
    return response.json()["message"]


@pytest.mark.parametrize(
    ("method", "path", "body", "kind", "status", "message"),
    [
        ("GET", "/nowhere", None, "", 404, "GET '/nowhere': no such path"),
        ("POST", "/ai/generate-images", BODY, JSON, 404, "POST '/ai/generate-images': no such path"),
        ("GET", "/" + "x" * 500, None, "", 404, "GET '/" + "x" * 75 + "...: no such path"),
        ("GET", "/<script>%0a%C3%A9", None, "", 404, r"GET '/<script>\n\xe9': no such path"),
        ("GET", GENERATE, None, "", 405, "GET: this path takes POST"),
        ("POST", "/live", BODY, JSON, 405, "POST: this path takes GET, HEAD"),
        ("BREW", "/live", None, "", 405, "BREW: this path takes GET, HEAD"),
        ("POST", GENERATE, " " * 1_048_577, JSON, 413, "the body is larger than 1 MiB"),
        ("POST", GENERATE, BODY, "text/plain", 415, "Content-Type: 'text/plain' is not application/json or multipart/form-data"),
        ("POST", GENERATE, {"input": "a"}, JSON, 400, "parameters: is required"),
        ("POST", GENERATE, {"parameters": None}, JSON, 400, "parameters: null is not an object"),
        ("POST", GENERATE, {"parameters": "steps"}, JSON, 400, "parameters: 'steps' is not an object"),
        ("POST", GENERATE, {"parameters": [1]}, JSON, 400, "parameters: an array is not an object"),
    ],
    ids=lambda part: ascii(part)[:40],
)  # fmt: skip
def test_every_error_is_in_the_envelope(client, method, path, body, kind, status, message):
    content = body if isinstance(body, str) or body is None else json.dumps(body)
    response = client.request(method, path, content=content, headers={"Content-Type": kind} if kind else {})
    assert read_message(response, status) == message
    assert status != 405 or response.headers["allow"] == message.partition(" takes ")[2]
    assert status != 413 or response.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"steps": 0}, "parameters.steps: 0 is not a whole number from 1 to 50"),
        ({"steps": 1.5}, "parameters.steps: 1.5 is not a whole number from 1 to 50"),
        ({"steps": True}, "parameters.steps: true is not a whole number from 1 to 50"),
        ({"steps": {}}, "parameters.steps: an object is not a whole number from 1 to 50"),
        ({"steps": [28]}, "parameters.steps: an array is not a whole number from 1 to 50"),
        ({"steps": 10**400}, f"parameters.steps: 1{'0' * 76}... is not a whole number from 1 to 50"),
        ({"scale": "high"}, "parameters.scale: 'high' is not a number from 0 to 50"),
        ({"sm": "maybe"}, "parameters.sm: 'maybe' is not true or false"),
        ({"sm": "ture"}, "parameters.sm: 'ture' is not true or false; did you mean 'true'?"),
        ({"image_format": "wepb"}, "parameters.image_format: 'wepb' is not png or webp; did you mean 'webp'?"),
        ({"image_format": "jpeg"}, "parameters.image_format: 'jpeg' is not png or webp"),
        ({"negative_prompt": 7}, "parameters.negative_prompt: 7 is not a text of at most 40000 characters"),
        ({"uc": "x" * 50_000}, f"parameters.uc: '{'x' * 76}... is not a text of at most 40000 characters"),
        ({"uc": "é\n" * 50_000}, "parameters.uc: '" + r"\xe9\n" * 12 + r"\xe9... is not a text"),
        ({"sampler": "k_eular"}, "parameters.sampler: 'k_eular' is not a sampler (did you mean 'k_euler'?); known: "),
        ({"noise_schedule": "karas"}, "(did you mean 'karras'?); known: native, "),
        ({"sampler": "x" * 201}, "parameters.sampler: 'xxx"),
    ],
    ids=lambda part: ascii(part)[:50],
)  # fmt: skip
def test_a_wrong_value_is_reported_with_its_field_and_what_is_allowed(client, parameters, message):
    response = client.post(
        GENERATE, content=json.dumps({"parameters": parameters}), headers={"Content-Type": JSON}
    )
    assert message in read_message(response, 400)


@pytest.mark.parametrize(
    ("action", "hint"),
    [("generat", "generate"), ("img2image", "img2img"), ("inpaint", None), ("", None), ("generate " * 500_000, None)],
    ids=lambda part: ascii(part)[:30],
)  # fmt: skip
def test_a_suggestion_compares_only_the_beginning_of_a_value(client, monkeypatch, action, hint):
    compared = []

    def get_close_matches(word, known, n):
        compared.append(word)
        return difflib.get_close_matches(word, known, n)

    monkeypatch.setattr(rejection, "get_close_matches", get_close_matches)
    message = read_message(client.post(GENERATE, json={"action": action[:900_000], "parameters": {}}), 400)
    assert message.startswith("action: ")
    assert "is not generate, img2img or infill" in message
    assert message.endswith(f"did you mean {hint!r}?" if hint else "infill")
    assert max(map(len, compared)) <= 40


@pytest.mark.parametrize(
    ("failure", "status", "message"),
    [
        (RuntimeError("CUDA error at /home/somebody"), 500, INTERNAL_ERROR),
        (MemoryError("9 GiB at 0x7f00"), 500, INTERNAL_ERROR),
        (KeyError("model.safetensors"), 500, INTERNAL_ERROR),
        (RecursionError("maximum recursion depth"), 500, INTERNAL_ERROR),
        (NotFinite("step 3 of 28 produced NaN"), 500, "step 3 of 28 produced NaN"),
        (WeightsError("/home/somebody/x.safetensors", "truncated"), 500, "x.safetensors: truncated"),
        (InvalidPrompt("every part has weight 0"), 400, "every part has weight 0"),
        (UnknownName("sampler", "x", ["k_euler"]), 400, "'x' is not a sampler; known: k_euler"),
        (
            Overloaded("the queue has no room"),
            429,
            "the queue has no room; try again shortly",
        ),
        (Unavailable("the model is still loading"), 503, "the model is still loading"),
    ],
    ids=lambda part: type(part).__name__ if isinstance(part, Exception) else None,
)
def test_a_failed_job_is_answered_by_its_kind_of_error(
    client, fake_model, monkeypatch, failure, status, message
):
    monkeypatch.setattr(fake_model, "failure", failure)
    response = client.post(GENERATE, json=BODY)
    assert read_message(response, status) == message
    assert ("retry-after" in response.headers) == (status in (429, 503))
    assert status not in (429, 503) or int(response.headers["retry-after"]) > 0
    monkeypatch.undo()
    assert client.post(GENERATE, json=BODY).status_code == 200


def test_a_missing_token_and_a_foreign_host_are_answered_in_the_envelope(model):
    state = build_state(model, FakeModel(), access=AccessRules(("t" * 64,)))
    client = TestClient(create_app(state), base_url=BASE_URL)
    assert read_message(client.post(GENERATE, json=BODY), 401) == "Unauthorized"
    assert read_message(client.get("/live", headers={"Host": "evil"}), 403).startswith(
        "Host: 'evil' is not a name of this server"
    )
