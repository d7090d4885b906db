"""OpenAI's own package against `/v1/`."""

import json

import pytest
from programs import Program

from server.picture.inspection import inspect, parse_json

OPENAI = Program("openai", "openai_client.py", "NAIAD_CLIENT_OPENAI")
REQUEST = {
    "prompt": "1girl, smile",
    "width": 512,
    "height": 768,
    "steps": 2,
    "seed": 42,
    "sampler": "k_euler",
    "n_samples": 2,
}

pytestmark = [pytest.mark.clients, OPENAI.skip_if_missing]


def test_it_gets_the_requested_images(open_address, tmp_path):
    result = OPENAI.run(open_address, "sk-anything", "generate", tmp_path, json.dumps(REQUEST))
    assert result == {"images": 2, "size": "512x768"}
    inspection = inspect((tmp_path / "1.png").read_bytes())
    comment = parse_json(inspection.text["Comment"])
    assert inspection.size == (512, 768)
    assert (comment["seed"], comment["steps"]) == (43, 2)


def test_it_lists_the_models(open_address, tmp_path):
    assert OPENAI.run(open_address, "sk-anything", "models", tmp_path, "{}") == {
        "models": ["nai-diffusion-3"]
    }


def test_its_own_exceptions_say_what_is_wrong(open_address, closed_address, tmp_path):
    refused = str(OPENAI.run(open_address, "sk-anything", "refuse", tmp_path, "{}")["error"])
    assert refused.startswith("BadRequestError")
    assert "response_format: 'url' is not b64_json" in refused
    unknown = str(OPENAI.run(closed_address, "sk-anything", "models", tmp_path, "{}")["error"])
    assert unknown.startswith("AuthenticationError invalid_api_key")
