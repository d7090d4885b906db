"""img2img and infill requests to a server process over HTTP."""

import json
from io import BytesIO

import httpx
import numpy as np
import pytest
from PIL import Image
from request_bodies import encode_image

from demo.captions import random_scene

RNG = np.random.default_rng(5)
WIDTH, HEIGHT = 128, 192
ORIGINAL = random_scene(RNG).draw(WIDTH, HEIGHT, RNG)
LATENT_MASK = np.zeros((HEIGHT // 8, WIDTH // 8), bool)
LATENT_MASK[8:16, 4:12] = True
EVERYWHERE = np.ones((HEIGHT, WIDTH), bool)
MASK = np.kron(LATENT_MASK, np.ones((8, 8), bool))


@pytest.fixture(scope="module")
def generate(server):
    def generate(action, **parameters):
        defaults = {"width": WIDTH, "height": HEIGHT, "steps": 6, "seed": 9, "image": encode_image(ORIGINAL)}
        body = {
            "input": "1girl",
            "model": "nai-diffusion-3",
            "action": action,
            "parameters": defaults | parameters,
        }
        response = httpx.post(
            f"{server}/ai/generate-image", json=body, headers={"Accept": "image/png"}, timeout=120
        )
        assert response.status_code == 200, response.text
        image = Image.open(BytesIO(response.content))
        return np.asarray(image.convert("RGB")), json.loads(image.info["Comment"])

    return generate


def mean_change(pixels, where=EVERYWHERE):
    return float(np.abs(pixels.astype(int) - ORIGINAL)[where].mean())


def test_low_strength_keeps_the_image_and_high_strength_does_not(generate):
    low, comment = generate("img2img", strength=0.01)
    high, _ = generate("img2img", strength=0.99)
    assert mean_change(low) < 25 < mean_change(high)
    assert comment["request_type"] == "Img2ImgRequest"
    assert (comment["strength"], comment["noise"], comment["extra_noise_seed"], comment["legacy"]) == (
        0.01,
        0.0,
        9,
        False,
    )
    assert set(comment["naiad"]["inputs"]) == {"picture"}
    assert comment["naiad"]["job"]["source"]["picture"] is None
    assert "image" not in comment


def test_infill_changes_only_the_masked_part(generate):
    mask = encode_image(MASK.astype(np.uint8) * 255)
    pixels, comment = generate("infill", model="nai-diffusion-3-inpainting", mask=mask, strength=0.7)
    assert np.abs(pixels.astype(int) - ORIGINAL)[~MASK].max() == 0
    assert mean_change(pixels, MASK) > 5
    assert (comment["request_type"], comment["add_original_image"]) == ("NativeInfillingRequest", True)
    assert "strength" not in comment
    assert set(comment["naiad"]["inputs"]) == {"picture", "mask", "inpainting"}
    assert comment["naiad"]["inputs"]["inpainting"] == "blend"


def test_every_form_of_the_mask_gives_the_same_image(generate):
    forms = (MASK.astype(np.uint8) * 255, LATENT_MASK.astype(np.uint8) * 255)
    full_size, eighth = (generate("infill", mask=encode_image(form))[0] for form in forms)
    assert (full_size == eighth).all()


def test_infill_of_low_strength_keeps_more_of_the_image(generate):
    mask = encode_image(MASK.astype(np.uint8) * 255)
    low, high = (generate("infill", mask=mask, inpaintImg2ImgStrength=strength)[0] for strength in (0.05, 1))
    assert mean_change(low, MASK) < mean_change(high, MASK)
