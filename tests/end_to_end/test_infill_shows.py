"""What the demo model generates from init images: inpainting with both kinds of UNet, and img2img over sketches."""

from io import BytesIO

import httpx
import numpy as np
import pytest
from jobs import change
from PIL import Image
from request_bodies import build_infill_bodies

from demo import evaluate
from demo.checkpoint import DEMO, INPAINTING
from demo.scenes import Scene
from demo.shapes import Shape
from demo.train_unet import build_job
from pipelines.job import InitImage, RgbImage
from pipelines.pipeline import Pipeline
from pipelines.weights.load import load_weights

pytestmark = pytest.mark.slow

SIZE = (256, 256)
HEART = Scene((Shape("heart", "blue"),), "white")
ORIGINAL = HEART.draw(*SIZE, np.random.default_rng(3))
LATENT_MASK = np.zeros((32, 32), bool)
LATENT_MASK[3:29, 3:29] = True
MASK = np.kron(LATENT_MASK, np.ones((8, 8), bool))
CIRCLE = "no humans, red circle, white background"


@pytest.fixture(scope="module", params=["inpainting UNet", "blended"])
def pipeline(request):
    return Pipeline(load_weights(DEMO, inpainting=INPAINTING if request.param == "inpainting UNet" else None))


def generate(pipeline, prompt, init_pixels, strength=1.0, masked=True):
    """An image (height, width, 3) generated from another, which is laid over it outside the mask."""
    mask = (LATENT_MASK * np.uint8(255)).tobytes() if masked else None
    init_image = InitImage(RgbImage(*SIZE, init_pixels.tobytes()), mask, overlay="soft")
    job = change(build_job(prompt, SIZE, seed=4, steps=28), init=init_image, strength=strength)
    return pipeline.run(job).images[0]


def pixel_steps(pixels, axis):
    """The largest change of a channel from each pixel to the next."""
    return np.abs(np.diff(pixels.astype(float), axis=axis)).max(axis=2)


def steps_across_edges(pixels):
    """The pixel steps across the edge of the mask."""
    steps = []
    for axis in (0, 1):
        changes = np.diff(MASK.astype(int), axis=axis) != 0
        steps.append(pixel_steps(pixels, axis)[changes])
    return np.concatenate(steps)


def test_infill_generates_the_new_object_without_a_seam(pipeline):
    result = generate(pipeline, CIRCLE, ORIGINAL)
    assert evaluate.detect_color(result) == "red"
    assert evaluate.detect_shape(result) == "circle"
    assert np.abs(result.astype(int) - ORIGINAL)[~MASK].max() <= 2
    usual = np.percentile(np.concatenate([pixel_steps(ORIGINAL, axis).ravel() for axis in (0, 1)]), 95)
    assert steps_across_edges(result).max() <= max(1.5 * usual, 8)


def test_a_sketch_on_the_image_is_kept_at_low_strength_and_gone_at_full(pipeline):
    sketch = ORIGINAL.copy()
    sketch[96:176, 96:176] = (245, 140, 30)
    orange = [
        evaluate.measure_color_share(
            generate(pipeline, "no humans, heart, white background", sketch, strength=strength), "orange"
        )
        for strength in (0.4, 1.0)
    ]
    assert orange[0] > 0.05
    assert orange[1] < 0.01


def test_high_strength_follows_the_prompt():
    result = generate(Pipeline(load_weights(DEMO)), CIRCLE, ORIGINAL, strength=0.99, masked=False)
    assert evaluate.detect_color(result) == "red"
    assert evaluate.detect_shape(result) == "circle"


BODIES = build_infill_bodies(CIRCLE, ORIGINAL, LATENT_MASK)


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_the_strength_that_clients_send_with_infill_is_ignored(server, body):
    response = httpx.post(
        f"{server}/ai/generate-image", json=body, headers={"Accept": "image/png"}, timeout=120
    )
    assert response.status_code == 200, response.text
    result = np.asarray(Image.open(BytesIO(response.content)).convert("RGB"))
    assert evaluate.detect_color(result) == "red"
    assert evaluate.detect_shape(result) == "circle"
    assert evaluate.measure_color_share(result, "blue") < 0.001
