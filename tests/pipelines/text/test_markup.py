import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.text.markup import AFTER_REVERSED, BEFORE, Tag, fold_tag, join_tags, read_tag, strip_weight
from pipelines.text.prompt import SYNTAXES, parse

SYNTAX = st.sampled_from(sorted(SYNTAXES))
MARKUP = st.text(alphabet="ab ()[]{}\\:.015-,")


def test_every_syntax_has_its_markup():
    assert BEFORE.keys() == AFTER_REVERSED.keys() == SYNTAXES.keys()


@pytest.mark.parametrize(
    ("syntax", "text", "parts"),
    [
        ("nai", " {{cat}} ", (" ", "{{", "cat", "}} ")),
        ("nai", "[red hair", ("", "[", "red hair", "")),
        ("nai", "(cat:1.2)", ("", "", "(cat:1.2)", "")),
        ("nai", "red {hair}", ("", "", "red {hair", "}")),
        ("nai4", " -1.5::{cat}::", (" ", "-1.5::{", "cat", "}::")),
        ("nai4", "::cat 2", ("", "::", "cat 2", "")),
        ("nai4", "2::2 cats", ("", "2::", "2 cats", "")),
        ("a1111", "((cat:1.2) ", ("", "((", "cat", ":1.2) ")),
        ("a1111", r"a \(b\)", ("", "", r"a \(b\)", "")),
        ("a1111", r"(a \(b\):.5)", ("", "(", r"a \(b\)", ":.5)")),
        ("a1111", "{cat}", ("", "", "{cat}", "")),
        ("nai+a1111", "{(artist:cat: 1.2 )}", ("", "{(", "artist:cat", ": 1.2 )}")),
        ("nai+a1111", "a (b)", ("", "", "a (b)", "")),
        ("nai+a1111", "{}", ("", "{}", "", "")),
    ],
)
def test_a_tag_is_read_without_the_emphasis_around_it(syntax, text, parts):
    assert read_tag(text, syntax) == Tag(*parts)


@given(MARKUP, SYNTAX)
def test_tags_joined_again_are_the_text(text, syntax):
    tags = [read_tag(piece, syntax) for piece in text.split(",")]
    assert [tag.space + tag.before + tag.name + tag.after for tag in tags] == text.split(",")
    assert join_tags([(tag, tag.name) for tag in tags]) == text


@pytest.mark.parametrize(
    ("syntax", "text", "expected"),
    [
        ("nai", "a, x, b", "a, b"),
        ("nai", "x, b", "b"),
        ("nai", "a, {x}, b", "a, b"),
        ("nai", "{a, x}, b", "{a}, b"),
        ("nai", "a, {x, b}", "a, {b}"),
        ("nai", "{x, x}", "{}"),
        ("nai", "a, {x", "a{"),
        ("nai", "x", ""),
        ("nai4", "1.5::a, x::, b", "1.5::a::, b"),
        ("nai4", "1.5::b 2, x::, a", "1.5::b 2 ::, a"),
        ("nai4", "1.5::x, a::, b", "1.5::a::, b"),
        ("nai+a1111", "(a, x:1.2), b", "(a:1.2), b"),
        ("nai+a1111", "(x, a:1.2), (x:3), b", "(a:1.2), b"),
    ],
)
def test_emphasis_of_other_tags_outlasts_a_tag_that_is_left_out(syntax, text, expected):
    tags = [read_tag(piece, syntax) for piece in text.split(",")]
    joined = join_tags([(tag, None if tag.name == "x" else tag.name) for tag in tags])
    assert joined == expected
    assert weigh_letters(joined, syntax) == weigh_letters(text, syntax)


def weigh_letters(text, syntax):
    """The weights of the letters a and b."""
    (segment,) = parse(text, syntax)
    return {letter: weight for run, weight in segment.runs for letter in run if letter in "ab"}


def test_digits_before_the_end_of_a_weight_do_not_become_a_weight():
    tag = read_tag("1.5::cat::", "nai4")
    assert join_tags([(tag, "score_9")]) == "1.5::score_9 ::"


def test_names_are_folded_and_weights_stripped():
    assert fold_tag(" Very_Aesthetic  art") == "very aesthetic art"
    assert [strip_weight(text) for text in ("(a b:1.5)", "(a)", "a:1.5")] == ["a b", "(a)", "a:1.5"]
