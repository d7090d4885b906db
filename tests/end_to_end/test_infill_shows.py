"""What pictures show that the demo drew from pictures: over masks, on both kinds of UNet, and over sketches."""

from dataclasses import replace
from io import BytesIO

import httpx
import numpy as np
import pytest
from bodies import infills
from PIL import Image

from demo import evaluate
from demo.checkpoint import DEMO, INPAINTING
from demo.scenes import Scene
from demo.shapes import Shape
from demo.train_unet import build_job
from pipelines.job import InitImage, RgbImage
from pipelines.pipeline import Pipeline
from pipelines.weights.load import load_weights

SIZE = (256, 256)
HEART = Scene((Shape("heart", "blue"),), "white")
OWN = HEART.draw(*SIZE, np.random.default_rng(3))
PLACES = np.zeros((32, 32), bool)
PLACES[3:29, 3:29] = True
MASK = np.kron(PLACES, np.ones((8, 8), bool))
CIRCLE = "no humans, red circle, white background"


@pytest.fixture(scope="module", params=["inpainting UNet", "blended"])
def pipeline(request):
    return Pipeline(load_weights(DEMO, inpainting=INPAINTING if request.param == "inpainting UNet" else None))


def drawn(pipeline, prompt, picture, strength=1.0, masked=True):
    """A picture (height, width, 3) over another, laid over it where a mask keeps it."""
    mask = (PLACES * np.uint8(255)).tobytes() if masked else None
    source = InitImage(RgbImage(*SIZE, picture.tobytes()), strength, mask=mask, overlay="soft")
    return pipeline.run(replace(build_job(prompt, SIZE, seed=4, steps=28), source=source))[0]


def steps(pixels, axis):
    """The largest change of a channel from each pixel to its neighbour."""
    return np.abs(np.diff(pixels.astype(float), axis=axis)).max(axis=2)


def across_edges(pixels):
    """The steps over the edge of the mask."""
    found = []
    for axis in (0, 1):
        changes = np.diff(MASK.astype(int), axis=axis) != 0
        found.append(steps(pixels, axis)[changes])
    return np.concatenate(found)


def test_infill_draws_the_new_thing_inside_without_a_seam(pipeline):
    result = drawn(pipeline, CIRCLE, OWN)
    assert evaluate.detect_color(result) == "red"
    assert evaluate.detect_shape(result) == "circle"
    assert np.abs(result.astype(int) - OWN)[~MASK].max() <= 2
    usual = np.percentile(np.concatenate([steps(OWN, axis).ravel() for axis in (0, 1)]), 95)
    assert across_edges(result).max() <= max(1.5 * usual, 8)


def test_a_sketch_over_the_picture_is_kept_at_some_strength_and_forgotten_at_all(pipeline):
    sketch = OWN.copy()
    sketch[96:176, 96:176] = (245, 140, 30)
    orange = [
        evaluate.measure_color_share(
            drawn(pipeline, "no humans, heart, white background", sketch, strength=strength), "orange"
        )
        for strength in (0.4, 1.0)
    ]
    assert orange[0] > 0.05
    assert orange[1] < 0.01


def test_nearly_all_strength_follows_the_prompt():
    result = drawn(Pipeline(load_weights(DEMO)), CIRCLE, OWN, strength=0.99, masked=False)
    assert evaluate.detect_color(result) == "red"
    assert evaluate.detect_shape(result) == "circle"


SENT = infills(CIRCLE, OWN, PLACES)


@pytest.mark.parametrize("body", SENT.values(), ids=SENT)
def test_the_strength_that_clients_send_with_infill_leaves_nothing_of_what_was_there(server, body):
    answer = httpx.post(
        f"{server}/ai/generate-image", json=body, headers={"Accept": "image/png"}, timeout=120
    )
    assert answer.status_code == 200, answer.text
    result = np.asarray(Image.open(BytesIO(answer.content)).convert("RGB"))
    assert evaluate.detect_color(result) == "red"
    assert evaluate.detect_shape(result) == "circle"
    assert evaluate.measure_color_share(result, "blue") < 0.001
