"""The demo's LoRA shows in the pixels: all of its palette at 1, half at 0.5, none at 0."""

from dataclasses import replace

import numpy as np
import pytest

from demo.checkpoint import CYANOTYPE_LORA
from demo.palette import CYANOTYPE, PLAIN
from demo.train_lora import to_cyanotype
from demo.train_unet import build_job
from pipelines.job import Lora
from pipelines.weights.checkpoint import fingerprint

pytestmark = pytest.mark.slow


def draw(demo, prompt, strength=None):
    job = build_job(prompt, (256, 256), seed=3, steps=10)
    lora = (
        None
        if strength is None
        else Lora("c", CYANOTYPE_LORA, fingerprint(CYANOTYPE_LORA), strength, strength)
    )
    return demo.run(replace(job, loras=() if lora is None else (lora,))).images[0]


@pytest.mark.parametrize(
    ("prompt", "color"),
    [
        ("no humans, red heart, white background", "red"),
        ("no humans, purple square, white background", "purple"),
    ],
)
def test_the_loras_palette_replaces_a_color_by_its_strength(demo, prompt, color):
    plain = draw(demo, prompt)
    center = {s: draw(demo, prompt, s)[112:144, 112:144].mean((0, 1)) for s in (0.0, 0.5, 1.0)}
    swatch = np.array([[PLAIN[color]]], np.uint8)
    red, blue = (image[0, 0].astype(float) for image in (swatch, to_cyanotype(swatch)))
    axis = (blue - red) / np.square(blue - red).sum()
    share = {s: float((middle - red) @ axis) for s, middle in center.items()}
    assert abs(share[0.0]) < 0.15, share
    assert 0.25 < share[0.5] < 0.75, share
    assert share[1.0] > 0.75, share
    assert (draw(demo, prompt) == plain).all()
    assert (draw(demo, prompt, 0.0) == plain).all()


def test_the_palette_keeps_the_order_of_tones():
    tones = to_cyanotype(np.array([[(0, 0, 0), (255, 255, 255)]], np.uint8))
    assert [tuple(color) for color in tones[0].tolist()] == list(CYANOTYPE)
