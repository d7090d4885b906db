import pytest

from server.errors import Rejected
from server.request.schema import LONGEST_TEXT
from server.request.v4_prompt import flatten_v4_prompt

FIELD = "parameters.v4_prompt"


def build_prompt(base, *characters, **keys):
    return {"caption": {"base_caption": base, "char_captions": list(characters)}, **keys}


def build_character(text, *centers):
    return {"char_caption": text, "centers": [{"x": x, "y": y} for x, y in centers]}


GIRLS = (build_character("girl, red hair", (0.9, 0.5)), build_character("girl, hat", (0.1, 0.5)))


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        # the base, then the characters in the order of the list; positions do not matter
        (build_prompt("2girls", *GIRLS), "2girls, girl, red hair, girl, hat"),
        (build_prompt("2girls", *GIRLS, use_coords=True, use_order=True), "2girls, girl, red hair, girl, hat"),
        (build_prompt("2girls", *reversed(GIRLS), use_coords=True, use_order=False), "2girls, girl, hat, girl, red hair"),
        (build_prompt("2girls", build_character("girl", (0.5, 0.5), (1, 1))), "2girls, girl"),
        (build_prompt("2girls", {"char_caption": "girl", "centers": "left"}), "2girls, girl"),
        (build_prompt("bad", build_character("boy"), legacy_uc=True), "bad, boy"),
        # unless they have no order, but places: then from left to right, and from top to bottom
        (build_prompt("2girls", *GIRLS, use_coords=True, use_order=False), "2girls, girl, hat, girl, red hair"),
        (build_prompt("2girls", *GIRLS, use_coords=False, use_order=False), "2girls, girl, red hair, girl, hat"),
        (build_prompt("2girls", *GIRLS, use_coords=True), "2girls, girl, red hair, girl, hat"),
        (build_prompt("a", build_character("b", (0.5, 0.7)), build_character("c", (0.5, 0.3)), use_coords=True, use_order=False), "a, c, b"),
        (build_prompt("a", {"char_caption": "b", "centers": [{}]}, {"char_caption": "c", "centers": []}, build_character("d", (0.9, 0.9)), build_character("e"), use_coords=True, use_order=False), "a, d, b, c, e"),
        # emphasis does not pass from one caption into the next, and lettering comes last
        (build_prompt("2girls, 2::rain", build_character("girl")), "2girls, 2::rain ::, girl"),
        (build_prompt("2girls, teXt: hello", build_character("girl")), "2girls, girl, teXt: hello"),
        # emphasis, bars and line breaks are kept; surrounding spaces and unwritable characters are not
        (build_prompt("{2girls} | 1.5::rain::,\ncity", build_character("[girl]")), "{2girls} | 1.5::rain::,\ncity, [girl]"),
        (build_prompt(" 2girls\n", build_character("  girl ")), "2girls, girl"),
        (build_prompt("2\0girls\ud83d", build_character("\udc00")), "2girls"),
        # missing, null or blank parts
        (None, ""),
        ({}, ""),
        ({"use_coords": False}, ""),
        ({"caption": None}, ""),
        ({"caption": {}}, ""),
        (build_prompt(None), ""),
        (build_prompt("", *GIRLS), "girl, red hair, girl, hat"),
        (build_prompt("2girls", build_character(""), None, {}, {"centers": []}, build_character(" "), GIRLS[1]), "2girls, girl, hat"),
        ({"caption": {"base_caption": "cat"}}, "cat"),
        ({"caption": {"base_caption": "cat", "char_captions": None}}, "cat"),
        ({"caption": {"char_captions": [build_character("cat")]}}, "cat"),
        # the longest text allowed
        (build_prompt("a" * (LONGEST_TEXT - 3), build_character("b")), "a" * (LONGEST_TEXT - 3) + ", b"),
    ],
)  # fmt: skip
def test_a_structured_prompt_becomes_one_text(sent, text):
    assert flatten_v4_prompt(sent, FIELD) == text


def test_captions_in_another_syntax_are_only_joined():
    sent = build_prompt("2::rain, teXt: hello", build_character("{girl"), build_character("boy"))
    assert flatten_v4_prompt(sent, FIELD, "nai") == "2::rain, teXt: hello, {girl, boy"


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ("2girls", ": '2girls' is not an object"),
        ([build_prompt("2girls")], ": an array is not an object"),
        (5, ": 5 is not an object"),
        ({"caption": "2girls"}, ".caption: '2girls' is not an object"),
        (build_prompt(["2girls"]), ".caption.base_caption: an array is not a text"),
        (build_prompt(5), ".caption.base_caption: 5 is not a text"),
        ({"caption": {"char_captions": "girl"}}, ".caption.char_captions: 'girl' is not an array"),
        ({"caption": {"char_captions": {"char_caption": "girl"}}}, ".caption.char_captions: an object is not an array"),
        (build_prompt("2girls", "girl"), ".caption.char_captions.0: 'girl' is not an object"),
        (build_prompt("2girls", GIRLS[0], build_character(5)), ".caption.char_captions.1.char_caption: 5 is not a text"),
        (build_prompt("a" * (LONGEST_TEXT - 2), build_character("b")), f": {LONGEST_TEXT + 1} characters; at most {LONGEST_TEXT}"),
    ],
)  # fmt: skip
def test_a_part_of_the_wrong_type_is_rejected_by_name(sent, message):
    with pytest.raises(Rejected) as error:
        flatten_v4_prompt(sent, FIELD)
    assert error.value.message == FIELD + message
