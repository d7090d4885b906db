"""What the demo model's images show, judged from their pixels alone. An error anywhere in the pipeline breaks it.

Seeds are fixed. docs/demo-model.md lists which errors make which tests fail.
"""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.demo_semantics import DemoGenerator, evaluate_image, measure_levels_at, measure_undesired
from demo import evaluate
from demo.card import SIZE, load_tile
from demo.characters import Character
from demo.scenes import Scene
from demo.shapes import Shape
from demo.train_unet import SAMPLE_PROMPTS, build_job
from pipelines.pipeline import Pipeline

pytestmark = pytest.mark.slow

SMALL = (256, 256)
GIRL = Character(
    boy=False, hair="red", haircut="long hair", eyes="blue", mouth="smile", shirt="green", skin="light"
)
SCENES = (
    Scene((GIRL,), "white", "upper body"),
    Scene(
        (replace(GIRL, hair="blue", eyes="green", shirt="yellow", haircut="short hair"),),
        "black",
        "upper body",
    ),
    Scene((Shape("heart", "red"),), "white"),
    Scene((Shape("star", "yellow"),) * 2, "blue"),
)


@pytest.fixture(scope="module")
def generator(demo):
    return DemoGenerator(demo)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: ", ".join(scene.tags()))
def test_an_image_shows_what_its_tags_say(generator, scene):
    pixels = generator.generate(", ".join(scene.tags()), 5)
    assert all(evaluate_image(scene, pixels).values()), evaluate_image(scene, pixels)


def average_blocks(pixels):
    """Return the means of blocks of 16x16 pixels, in which the loss of WebP is small."""
    rows, columns = (side // 16 for side in pixels.shape[:2])
    return pixels.reshape(rows, 16, columns, 16, 3).mean(axis=(1, 3))


def test_an_image_of_the_model_card_is_reproduced(demo):
    pixels = demo.run(build_job(SAMPLE_PROMPTS[7], SIZE)).images[0]
    # measured: 4, from WebP; other processors round differently. A wrong pooled vector changes a block by 38
    assert np.abs(average_blocks(load_tile(7)) - average_blocks(pixels)).max() < 12


def test_black_is_black_and_white_is_white(generator):
    levels = measure_levels_at(generator, 5.0, seeds=2)
    assert levels["black"] < 0.06
    assert levels["white"] > 0.94


def test_without_guidance_black_and_white_need_the_step_from_infinite_noise(demo, generator):
    finite = DemoGenerator(Pipeline(demo.weights, sigma_max=14.6))
    errors = [measure_levels_at(one, 1.0, seeds=2)["error"] for one in (finite, generator)]
    assert errors[0] > 3 * errors[1]


def measure_red(generator, prompt):
    """Return the mean share of red over seeds."""
    images = [generator.generate(prompt, seed, SMALL, negative="") for seed in range(3)]
    return np.mean([evaluate.measure_color_share(image, "red") for image in images])


def test_a_color_in_the_undesired_content_disappears(generator):
    for seed in range(3):
        before, after = measure_undesired(generator, seed, SMALL)
        assert before > 0.1
        assert after < 0.2 * before


def test_prompt_weights_change_the_share_of_a_color(generator):
    shares = [
        measure_red(generator, f"no humans, {text}, blue heart, white background")
        for text in ("[[[red heart]]]", "red heart", "{{{red heart}}}")
    ]
    assert shares[0] < shares[1] < shares[2]


def test_quality_tags_make_images_sharper(generator):
    for seed, tags in enumerate(", ".join(scene.tags()) for scene in SCENES[:2]):
        good = generator.generate(tags, seed, negative="")
        bad = generator.generate(f"{tags}, worst quality, lowres", seed, negative="", quality=False)
        # measured: 1.5 and 2.5
        assert evaluate.measure_sharpness(good) > 1.2 * evaluate.measure_sharpness(bad)
