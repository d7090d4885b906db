from math import isfinite

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import UnknownName
from pipelines.text.prompt import SYNTAXES, append_caption, parse


def test_prompts_parse_exactly_as_the_goldens(golden):
    for case in golden("prompts")["cases"]:
        parsed = [
            {"mix": segment.mix, "runs": [list(run) for run in segment.runs]}
            for segment in parse(case["prompt"])
        ]
        assert parsed == case["segments"], case["prompt"]


@given(st.text())
def test_every_text_parses_and_keeps_all_but_its_brackets(text):
    segments = parse(text)
    assert segments
    if "|" not in text:
        kept = "".join(run for run, _ in segments[0].runs)
        assert kept == "".join(letter for letter in text if letter not in "{}[]")


def test_a_mix_share_is_read_only_if_there_is_a_bar():
    assert parse("x:2")[0].runs == (("x:2", 1.0),)
    assert [segment.mix for segment in parse("a:.5 | b:2 |c:-1")] == [0.5, 2.0, -1.0]


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("(a:1.2) b (c) [d]", [("a", 1.2), (" b ", 1.0), ("c", 1.1), (" ", 1.0), ("d", 1 / 1.1)]),
        ("((x)) (y", [("x", 1.1 * 1.1), (" ", 1.0), ("y", 1.1)]),
        (r"name \(series\), \[x\]", [("name (series), [x]", 1.0)]),
        ("10:20 (a, b:2)", [("10:20 ", 1.0), ("a, b", 2.0)]),
        ("(a (b:2) c:0.5)", [("a ", 0.5), ("b", 1.0), (" c", 0.5)]),
        ("stray ) ]", [("stray ) ]", 1.0)]),
        ("{nai}", [("{nai}", 1.0)]),
    ],
)
def test_the_a1111_syntax_reads_weights_escapes_and_open_brackets(text, runs):
    (segment,) = parse(text, "a1111")
    assert [text for text, _ in segment.runs] == [text for text, _ in runs]
    assert [weight for _, weight in segment.runs] == pytest.approx([weight for _, weight in runs])


@given(st.text(alphabet="ab ()[]\\:.0123,"))
def test_the_a1111_syntax_accepts_every_text(text):
    assert len(parse(text, "a1111")) == 1


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("(a:1.2) b (c) {d}", [("a", 1.2), (" b (c) ", 1.0), ("d", 1.05)]),
        ("{(a:2) b} [(c:.5)]", [("a", 2.1), (" b", 1.05), (" ", 1.0), ("c", 0.5 / 1.05)]),
        ("((a:1.5) b:2)", [("a", 3.0), (" b", 2.0)]),
        ("(lucy (cyberpunk):1.5)", [("lucy (cyberpunk)", 1.5)]),
        (r"bishop \(chess\), (a \(b\):2)", [("bishop (chess), ", 1.0), ("a (b)", 2.0)]),
        (r"(open \m/ 10:20 :1.5) (x", [("open \\m/ 10:20 ", 1.5), (" (x", 1.0)]),
        ("({a:2), b", [("a", 2.1), (", b", 1.05)]),
    ],
)
def test_nai_s_brackets_and_a1111_s_numbers_work_together(text, runs):
    (segment,) = parse(text, "nai+a1111")
    assert [text for text, _ in segment.runs] == [text for text, _ in runs]
    assert [weight for _, weight in segment.runs] == pytest.approx([weight for _, weight in runs])


def test_a1111_s_numbers_work_in_a_mix():
    first, second = parse("(a:1.5):2|b(c)", "nai+a1111")
    assert (first.mix, first.runs, second.mix, second.runs) == (2.0, (("a", 1.5),), 1.0, (("b(c)", 1.0),))
    assert append_caption("(a:1.5):2|b", "c", "nai+a1111") == "(a:1.5), c:2|b, c"


@given(st.text(alphabet="ab {}[],|:2.").filter(lambda text: "(" not in text))
def test_without_parentheses_both_syntaxes_are_nai_s(text):
    assert parse(text, "nai+a1111") == parse(text)


def test_an_unknown_syntax_error_lists_the_known_ones():
    with pytest.raises(UnknownName, match="a1111"):
        parse("x", "a111")


@pytest.mark.parametrize("syntax", sorted(SYNTAXES))
@pytest.mark.parametrize(
    "text",
    [
        "{" * 39_000 + "a",
        "a|b:" + "9" * 400,
        "(a:" + "9" * 400 + ")",
        "(((a:" + "9" * 30 + ":0))",
        "]" * 39_000 + "a|b",
    ],
)
def test_weights_of_extreme_texts_are_finite(text, syntax):
    for segment in parse(text, syntax):
        assert isfinite(segment.mix)
        assert all(isfinite(weight) for _, weight in segment.runs)


@pytest.mark.parametrize("syntax", sorted(SYNTAXES))
@pytest.mark.parametrize(
    "text",
    [
        *(
            "a:" + "1" * 38_000 + "a|b",
            "(a:" + "1" * 38_000,
            "(a:" + " " * 38_000,
            "a:1" + " " * 38_000 + "b|",
        ),
        *("(a" * 20_000, "[a" * 20_000, "a:" * 20_000, "(" * 10_000 + "a" + ":1.1)" * 6_000),
    ],
)
def test_long_runs_and_deep_brackets_parse_quickly(text, syntax):
    # a pattern of quadratic time would take minutes
    assert sum(len(run) for segment in parse(text, syntax) for run, _ in segment.runs) > 0


def test_a_closing_number_of_0_after_a_huge_one_is_0():
    (segment,) = parse("((a:0):1000000)" + "(" * 60 + "b" + ":1000000)" * 60, "a1111")
    assert segment.runs[0] == ("a", 0.0)
    assert isfinite(segment.runs[-1][1])


@pytest.mark.parametrize(
    ("text", "syntax", "result"),
    [
        ("2girls", "nai", "2girls, hat"),
        ("2girls | city:2", "nai", "2girls, hat| city, hat:2"),
        ("2girls | ", "nai", "2girls, hat| "),
        ("", "nai", "hat"),
        ("2::rain", "nai4", "2::rain ::, hat"),
        ("a | b, text: hello", "nai4", "a | b, hat, text: hello"),
        ("(2girls", "a1111", "(2girls, hat"),
    ],
)
def test_a_caption_is_added_to_every_segment(text, syntax, result):
    assert append_caption(text, "hat", syntax) == result
    assert append_caption(text, " ", syntax) == text
