"""What the demo's pictures show, told from their pixels alone: a mistake anywhere on the way from the prompt spoils it.

Seeds are fixed; docs/demo-model.md lists what breaks which test.
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

SMALL = (256, 256)
GIRL = Character(
    boy=False, hair="red", haircut="long hair", eyes="blue", mouth="smile", shirt="green", skin="light"
)
SCENES = (
    Scene((GIRL,), "white", "upper body"),
    Scene(
        (replace(GIRL, hair="blue", eyes="green", shirt="yellow", cut="short hair"),), "black", "upper body"
    ),
    Scene((Shape("heart", "red"),), "white"),
    Scene((Shape("star", "yellow"),) * 2, "blue"),
)


@pytest.fixture(scope="module")
def easel(demo):
    return DemoGenerator(demo)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: ", ".join(scene.tags()))
def test_a_picture_shows_what_its_tags_say(easel, scene):
    pixels = easel.draw(", ".join(scene.tags()), 5)
    assert all(evaluate_image(scene, pixels).values()), evaluate_image(scene, pixels)


def squares(pixels):
    """The means of squares of 16 pixels: what WebP loses is small in them."""
    rows, columns = (side // 16 for side in pixels.shape[:2])
    return pixels.reshape(rows, 16, columns, 16, 3).mean(axis=(1, 3))


def test_a_picture_of_the_sheet_comes_out_again(demo):
    drawn = demo.run(build_job(SAMPLE_PROMPTS[7], SIZE)).images[0]
    # 4 were seen, of WebP's loss; other processors round otherwise. A wrong pooled vector changes a square by 38
    assert np.abs(squares(load_tile(7)) - squares(drawn)).max() < 12


def test_black_is_black_and_white_is_white(easel):
    found = measure_levels_at(easel, 5.0, seeds=2)
    assert found["black"] < 0.06
    assert found["white"] > 0.94


def test_without_guidance_both_need_the_step_from_infinite_noise(demo, easel):
    finite = DemoGenerator(Pipeline(demo.weights, sigma_max=14.6))
    assert (
        measure_levels_at(finite, 1.0, seeds=2)["error"] > 3 * measure_levels_at(easel, 1.0, seeds=2)["error"]
    )


def red(easel, prompt):
    """The mean share of red over seeds."""
    drawn = [easel.draw(prompt, seed, SMALL, negative="") for seed in range(3)]
    return np.mean([evaluate.measure_color_share(picture, "red") for picture in drawn])


def test_a_color_in_the_undesired_content_goes(easel):
    for seed in range(3):
        before, after = measure_undesired(easel, seed, SMALL)
        assert before > 0.1
        assert after < 0.2 * before


def test_weights_move_a_color(easel):
    shares = [
        red(easel, f"no humans, {said}, blue heart, white background")
        for said in ("[[[red heart]]]", "red heart", "{{{red heart}}}")
    ]
    assert shares[0] < shares[1] < shares[2]


def test_quality_tags_sharpen(easel):
    for seed, tags in enumerate(", ".join(scene.tags()) for scene in SCENES[:2]):
        good = easel.draw(tags, seed, negative="")
        bad = easel.draw(f"{tags}, worst quality, lowres", seed, negative="", quality=False)
        assert evaluate.measure_sharpness(good) > 1.2 * evaluate.measure_sharpness(
            bad
        )  # 1.5 and 2.5 were seen
