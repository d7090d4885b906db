"""Scenes: their tags, captions and drawings, and detecting the tags in the drawings."""

from dataclasses import replace

import numpy as np
import pytest

from demo import evaluate
from demo.captions import (
    BAD_TAGS,
    FALSE_BAD_SHARE,
    GOOD_TAGS,
    choose_word,
    random_character,
    random_scene,
    write_caption,
)
from demo.palette import PLAIN
from demo.scenes import STYLES, Scene, make_grid
from demo.shapes import KINDS, Shape

pytestmark = pytest.mark.slow


def plain_character(rng):
    """Return a random character whose colors can all be detected."""
    plain = {"skin": "light", "hat": False, "glasses": False, "closed_eyes": False, "bow": None}
    return replace(random_character(rng), **plain)


def choose_background(rng, *used):
    used = {*used, *(("yellow",) if "blonde" in used else ())}
    return choose_word(rng, [word for word in PLAIN if word not in used])


@pytest.mark.parametrize("size", [(256, 256), (224, 320), (320, 224)])
def test_a_drawing_has_the_requested_size_and_is_reproducible(size):
    one, two = (
        random_scene(np.random.default_rng(3)).draw(size[0], size[1], np.random.default_rng(4))
        for _ in range(2)
    )
    assert one.shape == (size[1], size[0], 3)
    assert one.dtype == np.uint8
    assert np.array_equal(one, two)


def test_black_and_white_are_exact():
    for word, level in (("black", 0), ("white", 255)):
        drawing = Scene((Shape("circle", "red"),), word).draw(64, 64, np.random.default_rng(0))
        assert (drawing[:4] == level).all()


def test_drawn_characters_are_detected():
    rng = np.random.default_rng(11)
    correct = {"background": 0, "hair": 0, "eyes": 0, "shirt": 0, "one": 0, "two": 0}
    for _ in range(40):
        character = plain_character(rng)
        background = choose_background(rng, character.hair, character.shirt)
        scene = Scene((character,), background, choose_word(rng, ("upper body", "full body", "chibi")))
        pixels = scene.draw(512, 512, rng)
        lab = evaluate.to_lab(pixels)
        faces = evaluate.detect_faces(lab)
        correct["background"] += evaluate.detect_background(pixels) == background
        correct["one"] += len(faces) == 1
        correct["hair"] += evaluate.detect_hair(lab, faces[0]) == character.hair
        correct["eyes"] += evaluate.detect_eyes(lab, faces[0]) == character.eyes
        correct["shirt"] += evaluate.detect_shirt(lab, faces[0]) == character.shirt
        pair = Scene((character, plain_character(rng)), background, "upper body").draw(768, 512, rng)
        correct["two"] += len(evaluate.detect_faces(evaluate.to_lab(pair))) == 2
    assert min(correct.values()) >= 39, correct


def test_drawn_shapes_are_detected():
    rng = np.random.default_rng(12)
    for kind in KINDS:
        for _ in range(5):
            background, count = choose_word(rng, PLAIN), int(rng.integers(1, 4))
            color = choose_background(rng, background)
            one = Scene((Shape(kind, color),), background).draw(256, 256, rng)
            assert (evaluate.detect_shape(one), evaluate.detect_color(one)) == (kind, color)
            several = Scene((Shape(kind, color),) * count, background).draw(384, 256, rng)
            assert len(evaluate.find_components(evaluate.segment_subject(several))) == count


def test_nothing_is_detected_in_an_empty_image():
    blank = np.full((64, 64, 3), 255, np.uint8)
    assert evaluate.detect_faces(evaluate.to_lab(blank)) == []
    assert evaluate.detect_shape(blank) is None
    assert evaluate.detect_color(blank) is None
    assert evaluate.detect_background(blank) == "white"


def test_tags_describe_counts_subjects_and_setting():
    rng = np.random.default_rng(1)
    girl = replace(
        plain_character(rng),
        boy=False,
        hair="red",
        haircut="twintails",
        eyes="blue",
        mouth="smile",
        shirt="green",
    )
    boy = replace(girl, boy=True, haircut="short hair", hair="black", hat=True)
    tags = Scene((girl,), "white", "upper body", "sketch").tags()
    assert tags[:2] == ["1girl", "solo"]
    assert {"red hair", "twintails", "blue eyes", "smile", "green shirt", "white background", "sketch"} < set(
        tags
    )
    assert Scene((girl, girl), "white", "chibi").count_tags() == ["2girls"]
    assert Scene((girl, boy), "white", "chibi").count_tags() == ["1girl", "1boy"]
    assert "hat" in Scene((girl, boy), "white", "chibi").tags()
    assert Scene((Shape("star", "red"),) * 3, "black").tags() == [
        "no humans",
        "3 stars",
        "red star",
        "black background",
    ]
    assert "on the left" in Scene((Shape("star", "red"),), "black", position="left").tags()


def test_a_degraded_image_is_less_sharp():
    rng = np.random.default_rng(2)
    for _ in range(10):
        scene = Scene((plain_character(rng),), "white", "chibi")
        sharp, degraded = (
            replace(scene, degradation=level).draw(256, 256, np.random.default_rng(0))
            for level in (None, 0.0)
        )
        steps = [np.abs(np.diff(image.astype(float), axis=1)) for image in (sharp, degraded)]
        assert np.percentile(steps[0], 99) > 1.5 * np.percentile(steps[1], 99)


def test_captions_have_quality_tags_some_of_them_false_and_some_are_empty():
    rng = np.random.default_rng(5)
    scenes = [random_scene(rng) for _ in range(600)]
    captions = [write_caption(scene, rng) for scene in scenes]
    assert 30 < captions.count("") < 105
    bad_counts = {True: 0, False: 0}
    for scene, text in zip(scenes, captions, strict=True):
        tags, is_degraded = set(text.split(", ")), scene.degradation is not None
        assert not (is_degraded and tags & set(GOOD_TAGS))
        assert not (tags & set(GOOD_TAGS) and tags & set(BAD_TAGS))
        bad_counts[is_degraded] += bool(tags & set(BAD_TAGS))
        if text and not tags & set(BAD_TAGS):
            assert text.startswith(", ".join(scene.count_tags()))
    assert bad_counts[True] > 0.8 * sum(scene.degradation is not None for scene in scenes)
    # a tenth of the captions are empty
    good = sum(scene.degradation is None for scene in scenes)
    assert bad_counts[False] / good == pytest.approx(0.9 * FALSE_BAD_SHARE, abs=0.06)


@pytest.mark.parametrize("style", STYLES)
def test_every_style_draws_every_kind_of_scene(style):
    rng = np.random.default_rng(6)
    scenes = [
        Scene((plain_character(rng),), "blue", "chibi", style),
        Scene((Shape("moon", "red"),), "blue", "", style),
    ]
    for scene in scenes:
        assert scene.draw(64, 96, rng).std() > 5
    assert style in scenes[0].tags() or not style


def test_a_grid_fills_its_last_row_with_white():
    black = np.zeros((2, 3, 3), np.uint8)
    grid = make_grid([black] * 3, 2)
    assert grid.shape == (4, 6, 3)
    assert (grid[2:, 3:] == 255).all()
    assert not grid[2:, :3].any()


def test_captions_describe_the_left_subject_first():
    rng = np.random.default_rng(6)
    left, right = (
        replace(plain_character(rng), hair=hair, shirt=shirt, haircut=haircut)
        for hair, shirt, haircut in (("red", "blue", "twintails"), ("green", "white", "ponytail"))
    )
    scene = Scene((left, right), "black", "chibi")
    orders: set[bool] = set()
    for _ in range(100):
        tags = write_caption(scene, rng, tag_rate=1.0).split(", ")
        if "red hair" in tags:
            assert tags.index("red hair") < tags.index("green hair")
            assert tags.index("blue shirt") < tags.index("white shirt")
            orders.add(tags.index("blue shirt") < tags.index("green hair"))
    assert orders == {True, False}
