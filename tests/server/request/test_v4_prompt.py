import pytest

from server.errors import Rejected
from server.request.schema import LONGEST_TEXT
from server.request.v4_prompt import flatten_v4_prompt

FIELD = "parameters.v4_prompt"


def prompt(base, *characters, **more):
    return {"caption": {"base_caption": base, "char_captions": list(characters)}, **more}


def character(text, *centers):
    return {"char_caption": text, "centers": [{"x": x, "y": y} for x, y in centers]}


GIRLS = (character("girl, red hair", (0.9, 0.5)), character("girl, hat", (0.1, 0.5)))


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        # the base and then the characters in the order they are listed, wherever they stand
        (prompt("2girls", *GIRLS), "2girls, girl, red hair, girl, hat"),
        (prompt("2girls", *GIRLS, use_coords=True, use_order=True), "2girls, girl, red hair, girl, hat"),
        (prompt("2girls", *reversed(GIRLS), use_coords=True, use_order=False), "2girls, girl, hat, girl, red hair"),
        (prompt("2girls", character("girl", (0.5, 0.5), (1, 1))), "2girls, girl"),
        (prompt("2girls", {"char_caption": "girl", "centers": "left"}), "2girls, girl"),
        (prompt("bad", character("boy"), legacy_uc=True), "bad, boy"),
        # only its letters: emphasis, bars and lines stay
        (prompt("{2girls} | 1.5::rain::,\ncity", character("[girl]")), "{2girls} | 1.5::rain::,\ncity, [girl]"),
        (prompt(" 2girls\n", character("  girl ")), "2girls, girl"),
        (prompt("2\0girls\ud83d", character("\udc00")), "2girls"),
        # parts that are missing, null or blank
        (None, ""),
        ({}, ""),
        ({"use_coords": False}, ""),
        ({"caption": None}, ""),
        ({"caption": {}}, ""),
        (prompt(None), ""),
        (prompt("", *GIRLS), "girl, red hair, girl, hat"),
        (prompt("2girls", character(""), None, {}, {"centers": []}, character(" "), GIRLS[1]), "2girls, girl, hat"),
        ({"caption": {"base_caption": "cat"}}, "cat"),
        ({"caption": {"base_caption": "cat", "char_captions": None}}, "cat"),
        ({"caption": {"char_captions": [character("cat")]}}, "cat"),
        # as much as one text may be
        (prompt("a" * (LONGEST_TEXT - 3), character("b")), "a" * (LONGEST_TEXT - 3) + ", b"),
    ],
)  # fmt: skip
def test_a_structured_prompt_is_one_text(sent, text):
    assert flatten_v4_prompt(sent, FIELD) == text


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ("2girls", ": '2girls' is not an object"),
        ([prompt("2girls")], ": an array is not an object"),
        (5, ": 5 is not an object"),
        ({"caption": "2girls"}, ".caption: '2girls' is not an object"),
        (prompt(["2girls"]), ".caption.base_caption: an array is not a text"),
        (prompt(5), ".caption.base_caption: 5 is not a text"),
        ({"caption": {"char_captions": "girl"}}, ".caption.char_captions: 'girl' is not an array"),
        ({"caption": {"char_captions": {"char_caption": "girl"}}}, ".caption.char_captions: an object is not an array"),
        (prompt("2girls", "girl"), ".caption.char_captions.0: 'girl' is not an object"),
        (prompt("2girls", GIRLS[0], character(5)), ".caption.char_captions.1.char_caption: 5 is not a text"),
        (prompt("a" * (LONGEST_TEXT - 2), character("b")), f": {LONGEST_TEXT + 1} characters; at most {LONGEST_TEXT}"),
    ],
)  # fmt: skip
def test_a_part_of_another_kind_is_refused_by_its_name(sent, said):
    with pytest.raises(Rejected) as refused:
        flatten_v4_prompt(sent, FIELD)
    assert refused.value.message == FIELD + said
