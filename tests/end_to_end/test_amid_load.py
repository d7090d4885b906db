"""A server process under load: each picture has the pixels that it has when the server has nothing else to do."""

from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from random import Random
from zipfile import ZipFile

import httpx
import numpy as np
import pytest
from PIL import Image
from waiting import PROCESS_LIMIT

pytestmark = pytest.mark.slow

CLIENTS = 9


def encode_image():
    file = BytesIO()
    Image.effect_noise((96, 96), 60).convert("RGB").save(file, "PNG")
    return b64encode(file.getvalue()).decode()


IMAGE = encode_image()
KINDS = {
    "long": {"width": 192, "height": 256, "steps": 10, "sampler": "k_euler_ancestral"},
    "three": {"width": 64, "height": 128, "n_samples": 3, "sampler": "k_dpmpp_2m_sde"},
    "two evaluations a step": {"width": 128, "height": 64, "sampler": "k_heun", "noise_schedule": "karras"},
    "without guidance": {"width": 64, "height": 64, "scale": 1, "sampler": "ddim_v3"},
    "SMEA": {"width": 128, "height": 128, "sm": True, "sampler": "k_dpmpp_2s_ancestral"},
    "img2img": {"width": 96, "height": 96, "image": IMAGE, "strength": 0.6, "n_samples": 2},
    "Enhance": {"width": 64, "height": 64, "enhance": {"magnitude": 3, "seed": 5}},
}


def draw(server, kind):
    """The pixels of a request's pictures."""
    parameters = {"steps": 6, "seed": 21, **KINDS[kind]}
    body = {"input": "1girl, {smile}", "model": "nai-diffusion-3", "parameters": parameters}
    response = httpx.post(f"{server}/ai/generate-image", json=body, timeout=PROCESS_LIMIT)
    assert response.status_code == 200, response.text
    with ZipFile(BytesIO(response.content)) as archive:
        return [
            np.asarray(Image.open(archive.open(name)).convert("RGB")).tobytes() for name in archive.namelist()
        ]


def test_pictures_amid_eight_others_are_those_made_alone(server):
    alone = {kind: draw(server, kind) for kind in KINDS}
    assert len({pixels for pictures in alone.values() for pixels in pictures}) == 10
    order = list(KINDS) * 2
    Random(1).shuffle(order)
    with ThreadPoolExecutor(CLIENTS) as threads:
        drawn = list(threads.map(partial(draw, server), order))
    assert [kind for kind, pictures in zip(order, drawn, strict=True) if pictures != alone[kind]] == []
