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
        build("2girls", ("a", "left", 0.5), ("b",)),
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


@pytest.mark.parametrize("center", [(1.5, 0.5), (0.5, -0.1), (300, 200)])
def test_a_center_outside_the_image_is_refused(center):
    with pytest.raises(Rejected, match="shares of the image, 0 to 1"):
        place(build("1girl", ("a", *center)))


def test_more_regions_than_nai_has_characters_are_refused():
    captions = [(f"girl {k}", k / 10, 0.5) for k in range(7)]
    with pytest.raises(Rejected, match="7 characters have places; at most 6"):
        place(build("7girls", *captions))
