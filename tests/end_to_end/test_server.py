"""The whole thing: a server process with the demo model, over real HTTP."""

import io
import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
from PIL import Image

PARAMETERS = {"width": 192, "height": 256, "steps": 5, "seed": 21, "sampler": "k_euler_ancestral"}


def ask(server, accept="image/png", **parameters):
    body = {"input": "1girl, {smile}", "model": "nai-diffusion-3", "parameters": PARAMETERS | parameters}
    answer = httpx.post(f"{server}/ai/generate-image", json=body, headers={"Accept": accept}, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer


def rgb(answer):
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"))


def test_a_repeated_request_gives_the_same_pixels_while_others_run(server):
    alone = ask(server)
    with ThreadPoolExecutor(3) as threads:
        others = [threads.submit(ask, server, seed=seed, width=128) for seed in (1, 2)]
        again = threads.submit(ask, server)
        [other.result() for other in others]
    assert np.array_equal(rgb(alone), rgb(again.result()))
    comments = [
        json.loads(Image.open(io.BytesIO(a.content)).info["Comment"]) for a in (alone, again.result())
    ]
    assert comments[0] == comments[1]


def test_a_client_that_offers_to_upgrade_keeps_its_body(server):
    body = json.dumps({"input": "a", "parameters": PARAMETERS | {"steps": 1}})
    headers = {
        "Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk",
        "Content-Type": "application/json", "Accept": "image/png",
    }  # fmt: skip
    answer = httpx.post(f"{server}/ai/generate-image", content=body, headers=headers, timeout=60)
    assert answer.status_code == 200
    assert rgb(answer).shape == (256, 192, 3)


def test_a_weightless_mix_is_refused_by_the_real_pipeline_too(server):
    body = {"input": "a:0|b:0", "parameters": PARAMETERS}
    answer = httpx.post(f"{server}/ai/generate-image", json=body, timeout=60)
    assert answer.status_code == 400
    assert "weight 0" in answer.json()["message"]
