import pytest
from pydantic import ValidationError

from server.director.recipes import Recipe, load_recipes
from server.errors import Rejected

RECIPES = load_recipes()
MOODS = (
    "neutral happy sad angry scared surprised tired excited nervous thinking confused shy disgusted smug bored laughing "
    "irritated aroused embarrassed worried love determined hurt playful"
)


def test_the_moods_are_nais():
    assert list(RECIPES.moods) == MOODS.split()


@pytest.mark.parametrize(
    ("prompt", "mood", "extra"),
    [
        ("happy;;", "happy", ""),
        ("happy;; red hair,", "happy", " red hair,"),
        (" Happy ;;x;;y", "happy", "x;;y"),
        ("sad", "sad", ""),
    ],
)
def test_a_mood_stands_before_two_semicolons(prompt, mood, extra):
    assert RECIPES.parse_mood(prompt) == (mood, extra)


@pytest.mark.parametrize("prompt", ["", "gleeful;;", "1girl, happy", ";;happy"])
def test_another_mood_is_refused_and_all_are_named(prompt):
    with pytest.raises(Rejected) as caught:
        RECIPES.parse_mood(prompt)
    assert caught.value.message.startswith("prompt: ")
    assert caught.value.message.endswith("hurt, playful")


@pytest.mark.parametrize(
    ("sent", "level"),
    [(None, 0), ("", 0), (0, 0), (5, 5), ("3", 3), (2.0, 2), ("2.0", 2), ("Even Weaker", 3)],
)
def test_defry_is_a_number_or_its_name(sent, level):
    assert RECIPES.parse_level(sent) == level


@pytest.mark.parametrize("sent", [6, -1, 1.5, "strong", True, [1], {}])
def test_another_defry_is_refused(sent):
    with pytest.raises(Rejected, match=r"defry: .* is not a whole number from 0 to 5"):
        RECIPES.parse_level(sent)


def test_weaker_levels_change_less():
    for tool in ("colorize", "emotion"):
        strength = RECIPES.recipes[tool].strength
        assert list(strength) == sorted(set(strength), reverse=True)


def test_the_images_own_prompt_loses_its_expression():
    source = "1girl, {{smile}}, {red hair, Open Mouth}, blue eyes|cat:0.5"
    positive, negative = RECIPES.build_prompts("emotion", "hat, ", "sad", source)
    assert positive == "sad, frown, downcast eyes, hat, 1girl, red hair, blue eyes"
    assert negative == ""


def test_what_a_tool_removes_is_not_asked_for():
    positive, negative = RECIPES.build_prompts("declutter", "", "", "1girl, speech bubble, [signature]")
    assert positive == "no text, 1girl"
    assert "speech bubble" in negative
    assert "speech bubble" not in RECIPES.build_prompts("declutter-keep-bubbles", "", "", "1girl")[1]


def test_braces_in_a_prompt_are_left_alone():
    assert RECIPES.build_prompts("colorize", "{{red}} {source}", "", "")[0] == "{{red}} {source}"


@pytest.mark.parametrize("template", ["{other}", "{", "{0}"])
def test_a_template_with_other_braces_is_refused(template):
    with pytest.raises(ValidationError, match="no other braces"):
        Recipe(prompt=template, strength=(0.5,) * 6)
