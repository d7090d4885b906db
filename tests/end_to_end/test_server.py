"""A server process with the demo model, over HTTP."""

import io
import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
from PIL import Image

PARAMETERS = {"width": 192, "height": 256, "steps": 5, "seed": 21, "sampler": "k_euler_ancestral"}


def generate(server, accept="image/png", **parameters):
    body = {"input": "1girl, {smile}", "model": "nai-diffusion-3", "parameters": PARAMETERS | parameters}
    response = httpx.post(f"{server}/ai/generate-image", json=body, headers={"Accept": accept}, timeout=120)
    assert response.status_code == 200, response.text
    return response


def read_pixels(response):
    return np.asarray(Image.open(io.BytesIO(response.content)).convert("RGB"))


def test_a_repeated_request_gives_the_same_pixels_while_others_run(server):
    alone = generate(server)
    with ThreadPoolExecutor(3) as threads:
        others = [threads.submit(generate, server, seed=seed, width=128) for seed in (1, 2)]
        repeated = threads.submit(generate, server)
        [other.result() for other in others]
    assert np.array_equal(read_pixels(alone), read_pixels(repeated.result()))
    comments = [
        json.loads(Image.open(io.BytesIO(response.content)).info["Comment"])
        for response in (alone, repeated.result())
    ]
    assert comments[0] == comments[1]


def test_a_request_that_offers_an_upgrade_keeps_its_body(server):
    body = json.dumps({"input": "a", "parameters": PARAMETERS | {"steps": 1}})
    headers = {
        "Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk",
        "Content-Type": "application/json", "Accept": "image/png",
    }  # fmt: skip
    response = httpx.post(f"{server}/ai/generate-image", content=body, headers=headers, timeout=60)
    assert response.status_code == 200
    assert read_pixels(response).shape == (256, 192, 3)


def test_a_mix_of_zero_weights_is_rejected_by_the_pipeline(server):
    body = {"input": "a:0|b:0", "parameters": PARAMETERS}
    response = httpx.post(f"{server}/ai/generate-image", json=body, timeout=60)
    assert response.status_code == 400
    assert "weight 0" in response.json()["message"]
