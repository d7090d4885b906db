"""The demo's world: its pictures, its tags, and telling the one from the other."""

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


def plain_character(rng):
    """Somebody whose every color the judge can see."""
    bare = {"skin": "light", "hat": False, "glasses": False, "closed_eyes": False, "bow": None}
    return replace(random_character(rng), **bare)


def ground(rng, *taken):
    taken = {*taken, *(("yellow",) if "blonde" in taken else ())}
    return choose_word(rng, [word for word in PLAIN if word not in taken])


@pytest.mark.parametrize("size", [(256, 256), (224, 320), (320, 224)])
def test_a_scene_has_the_size_asked_for_and_repeats(size):
    one, two = (
        random_scene(np.random.default_rng(3)).draw(size[0], size[1], np.random.default_rng(4))
        for _ in range(2)
    )
    assert one.shape == (size[1], size[0], 3)
    assert one.dtype == np.uint8
    assert np.array_equal(one, two)


def test_black_and_white_are_exactly_that():
    for word, level in (("black", 0), ("white", 255)):
        drawn = Scene((Shape("circle", "red"),), word).draw(64, 64, np.random.default_rng(0))
        assert (drawn[:4] == level).all()


def test_the_judge_tells_characters_of_the_generators_own():
    rng = np.random.default_rng(11)
    right = {"background": 0, "hair": 0, "eyes": 0, "shirt": 0, "one": 0, "two": 0}
    for _ in range(40):
        who = plain_character(rng)
        word = ground(rng, who.hair, who.shirt)
        scene = Scene((who,), word, choose_word(rng, ("upper body", "full body", "chibi")))
        pixels = scene.draw(512, 512, rng)
        picture = evaluate.to_lab(pixels)
        faces = evaluate.detect_faces(picture)
        right["background"] += evaluate.detect_background(pixels) == word
        right["one"] += len(faces) == 1
        right["hair"] += evaluate.detect_hair(picture, faces[0]) == who.hair
        right["eyes"] += evaluate.detect_eyes(picture, faces[0]) == who.eyes
        right["shirt"] += evaluate.detect_shirt(picture, faces[0]) == who.shirt
        pair = Scene((who, plain_character(rng)), word, "upper body").draw(768, 512, rng)
        right["two"] += len(evaluate.detect_faces(evaluate.to_lab(pair))) == 2
    assert min(right.values()) >= 39, right


def test_the_judge_tells_shapes_of_the_generators_own():
    rng = np.random.default_rng(12)
    for kind in KINDS:
        for _ in range(5):
            word, color, count = choose_word(rng, PLAIN), "", int(rng.integers(1, 4))
            color = ground(rng, word)
            one = Scene((Shape(kind, color),), word).draw(256, 256, rng)
            assert (evaluate.detect_shape(one), evaluate.detect_color(one)) == (kind, color)
            several = Scene((Shape(kind, color),) * count, word).draw(384, 256, rng)
            assert len(evaluate.find_components(evaluate.segment_subject(several))) == count


def test_an_empty_picture_has_nothing_to_judge():
    blank = np.full((64, 64, 3), 255, np.uint8)
    assert evaluate.detect_faces(evaluate.to_lab(blank)) == []
    assert evaluate.detect_shape(blank) is None
    assert evaluate.detect_color(blank) is None
    assert evaluate.detect_background(blank) == "white"


def test_tags_say_who_how_many_and_where():
    rng = np.random.default_rng(1)
    girl = replace(
        plain_character(rng),
        boy=False,
        hair="red",
        cut="twintails",
        eyes="blue",
        mouth="smile",
        shirt="green",
    )
    boy = replace(girl, boy=True, cut="short hair", hair="black", hat=True)
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


def test_a_spoilt_picture_is_less_sharp():
    rng = np.random.default_rng(2)
    for _ in range(10):
        scene = Scene((plain_character(rng),), "white", "chibi")
        crisp, spoilt = (
            replace(scene, spoilt=level).draw(256, 256, np.random.default_rng(0)) for level in (None, 0.0)
        )
        steps = [np.abs(np.diff(picture.astype(float), axis=1)) for picture in (crisp, spoilt)]
        assert np.percentile(steps[0], 99) > 1.5 * np.percentile(steps[1], 99)


def test_captions_know_quality_doubt_some_of_it_and_leave_some_empty():
    rng = np.random.default_rng(5)
    scenes = [random_scene(rng) for _ in range(600)]
    captions = [write_caption(scene, rng) for scene in scenes]
    assert 30 < captions.count("") < 105
    called_bad = {True: 0, False: 0}
    for scene, text in zip(scenes, captions, strict=True):
        tags, spoilt = set(text.split(", ")), scene.degradation is not None
        assert not (spoilt and tags & set(GOOD_TAGS))
        assert not (tags & set(GOOD_TAGS) and tags & set(BAD_TAGS))
        called_bad[spoilt] += bool(tags & set(BAD_TAGS))
        if text and not tags & set(BAD_TAGS):
            assert text.startswith(", ".join(scene.count_tags()))
    assert called_bad[True] > 0.8 * sum(scene.degradation is not None for scene in scenes)
    # but for the tenth that says nothing
    good = sum(scene.degradation is None for scene in scenes)
    assert called_bad[False] / good == pytest.approx(0.9 * FALSE_BAD_SHARE, abs=0.06)


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


def test_a_sheet_fills_its_last_row_with_white():
    black = np.zeros((2, 3, 3), np.uint8)
    found = make_grid([black] * 3, 2)
    assert found.shape == (4, 6, 3)
    assert (found[2:, 3:] == 255).all()
    assert not found[2:, :3].any()


def test_captions_tell_of_the_left_one_first():
    rng = np.random.default_rng(6)
    left, right = (
        replace(plain_character(rng), hair=hair, shirt=shirt, cut=cut)
        for hair, shirt, cut in (("red", "blue", "twintails"), ("green", "white", "ponytail"))
    )
    scene = Scene((left, right), "black", "chibi")
    orders: set[bool] = set()
    for _ in range(100):
        told = write_caption(scene, rng, tag_rate=1.0).split(", ")
        if "red hair" in told:
            assert told.index("red hair") < told.index("green hair")
            assert told.index("blue shirt") < told.index("white shirt")
            orders.add(told.index("blue shirt") < told.index("green hair"))
    assert orders == {True, False}
