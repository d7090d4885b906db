"""Which characters of a structured prompt get a region of their own."""

import pytest

from pipelines.job import Character
from server.errors import Rejected
from server.request.characters import PlacedPrompts, place_characters


def build(base, *characters, **keys):
    captions = [
        {"char_caption": text, **({"centers": [{"x": center[0], "y": center[1]}]} if center else {})}
        for text, *center in characters
    ]
    return {"caption": {"base_caption": base, "char_captions": captions}, "use_coords": True, **keys}


def place(positive, negative=None):
    placed = place_characters(positive, negative, "nai4")
    assert placed is not None
    return placed


RED, BLUE = ("girl, red hair", 0.3, 0.5), ("girl, blue hair", 0.7, 0.5)


def test_each_center_is_a_region():
    placed = place(build("2girls", RED, BLUE), build("lowres", ("hat",), ("",), use_coords=False))
    assert placed == PlacedPrompts(
        "2girls",
        "lowres",
        (Character("girl, red hair", "hat", 0.3, 0.5), Character("girl, blue hair", "", 0.7, 0.5)),
    )


@pytest.mark.parametrize(
    "sent",
    [
        None,
        build("2girls"),
        build("2girls", RED, BLUE, use_coords=False),
        build("2girls", RED, BLUE, use_coords=None),
        build("2girls", ("a",), ("b",)),
        # the centers of NAI's page for characters without a place
        build("2girls", ("a", 0.5, 0.5), ("b", 0.5, 0.5)),
    ],
)
def test_without_places_there_are_no_regions(sent):
    assert place_characters(sent, None, "nai4") is None


def test_a_single_character_has_a_region_away_from_the_middle():
    assert place(build("1girl", ("hat", 0.1, 0.5))).characters == (Character("hat", "", 0.1, 0.5),)


def test_characters_with_the_same_center_share_a_region():
    placed = place(build("3girls", RED, BLUE, ("2::cat", 0.3, 0.5)), build("bad", ("x",), ("",), ("y",)))
    assert placed.characters[0] == Character("girl, red hair, 2::cat", "x, y", 0.3, 0.5)
    assert len(placed.characters) == 2


def test_characters_without_a_place_belong_to_the_base_prompt():
    placed = place(build("2girls", RED, ("cat",)), build("bad", ("",), ("dog",), ("mouse",)))
    assert (placed.positive, placed.negative) == ("2girls, cat", "bad, dog, mouse")
    assert placed.characters == (Character("girl, red hair", "", 0.3, 0.5),)


BIG = 10**400


@pytest.mark.parametrize(
    ("centers", "said"),
    [
        ([{"x": 1.5, "y": 0.5}], ".0.x: 1.5 is not a share of the image, a number from 0 to 1"),
        ([{"x": 0.5, "y": -0.1}], ".0.y: -0.1 is not a share"),
        ([{"x": "left", "y": 0.5}], ".0.x: 'left' is not a share"),
        ([{"x": "nan", "y": 0.5}], ".0.x: 'nan' is not a share"),
        ([{"x": float("nan"), "y": 0.5}], ".0.x: nan is not a share"),
        ([{"x": True, "y": 0.5}], ".0.x: true is not a share"),
        ([{"x": BIG, "y": 0.5}], ".0.x: 1000000000000000"),
        ([{"x": 0.5}], ".0.y: null is not a share"),
        ([[0.5, 0.5]], ".0: an array is not an object"),
        ({"x": 0.5, "y": 0.5}, ": an object is not an array like"),
        ("left", ": 'left' is not an array like"),
    ],
)
def test_a_wrong_center_is_refused_by_name(centers, said):
    prompt = build("1girl", ("a",), ("b", 0.1, 0.5))
    prompt["caption"]["char_captions"][0]["centers"] = centers
    with pytest.raises(Rejected) as refused:
        place(prompt)
    field = "parameters.v4_prompt.caption.char_captions.0.centers"
    assert refused.value.message.startswith(field + said)
    assert place_characters(prompt | {"use_coords": False}, None, "nai4") is None  # it does not count then


@pytest.mark.parametrize("centers", [None, [], "", {}, [{}], [None]])
def test_an_empty_center_is_none(centers):
    prompt = build("1girl", ("a",), ("b", 0.1, 0.5))
    prompt["caption"]["char_captions"][0]["centers"] = centers
    assert place(prompt).positive == "1girl, a"


def test_numbers_and_flags_may_be_texts():
    expected = (Character("hat", "", 0.1, 1.0),)
    for flag in (True, "true", "True", 1, "1"):
        assert place(build("1girl", ("hat", "0.1", "1e0"), use_coords=flag)).characters == expected
    for flag in (False, "false", 0, None):
        assert place_characters(build("1girl", RED, use_coords=flag), None, "nai4") is None
    for flag in ("yes", 2, [], 1.0):
        with pytest.raises(Rejected, match=r"v4_prompt\.use_coords: .* is not true or false"):
            place(build("1girl", RED, use_coords=flag))


def test_more_regions_than_nai_has_characters_are_refused():
    captions = [(f"girl {k}", k / 10, 0.5) for k in range(7)]
    with pytest.raises(Rejected, match="7 characters have places; at most 6"):
        place(build("7girls", *captions))
