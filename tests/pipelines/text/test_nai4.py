"""NAI V4's prompt syntax: what each text means, and that any text means something quickly."""

import re
from math import isfinite
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.text.nai4 import join_captions, split_captions, strip_lettering
from pipelines.text.prompt import parse, parse_pair

HOSTILE = st.text(alphabet="ab {}[]|:-+.0123,\n") | st.text()
LONG = [
    *("1" * 39_000, "-1." * 13_000 + "::", ":" * 39_999, "1::" * 13_000 + "a", "::1" * 13_000, "|" * 39_999),
    *("a|" * 19_000, "||a" * 13_000, "{" * 39_000 + "a", "2::{" * 9_000, "text:" * 7_000, ",text:|" * 5_000),
    *("-1::a::, " * 4_000, "0::a::," * 5_000, ", " * 19_000 + "0::a::" + ", " * 19_000, "1" * 19_000 + "." + "1" * 19_000 + "::"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        # numbers
        ("1.5::rain::", [("rain", 1.5)]),
        ("2::a::, b", [("a", 2), (", b", 1)]),
        ("x, 2::a, b::, c", [("x, ", 1), ("a, b", 2), (", c", 1)]),
        ("0::a::", [("a", 0)]),
        ("-1::a::", [("a", -1)]),
        ("-0.8::feet::, b", [("feet", -0.8), (", b", 1)]),
        ("-.5::a", [("a", -0.5)]),
        (".5::a", [("a", 0.5)]),
        ("2.::a", [("a", 2)]),
        ("+2::a", [("a", 2)]),
        ("007::a", [("a", 7)]),
        ("1e3::a", [("1e", 1), ("a", 3)]),
        ("1.2.3::a", [("1.", 1), ("a", 2.3)]),
        ("--2::a", [("-", 1), ("a", -2)]),
        ("year 2022::a", [("year ", 1), ("a", 2022)]),
        ("w2::a", [("w", 1), ("a", 2)]),
        ("2 ::a", [("2 a", 1)]),
        ("٢::a", [("٢a", 1)]),
        # where emphasis ends
        ("2::a", [("a", 2)]),
        ("2::a::b", [("a", 2), ("b", 1)]),
        ("2::a3::b", [("a", 2), ("b", 3)]),
        ("2::a::3::b::", [("a", 2), ("b", 3)]),
        ("1::2::3::4", [("4", 3)]),
        ("2::::a", [("a", 1)]),
        ("a::b", [("ab", 1)]),
        ("::", []),
        ("2::a:::b", [("a", 2), (":b", 1)]),
        ("a:b, c:2", [("a:b, c:2", 1)]),
        ("2::She smiles.::, b", [("She smiles.", 2), (", b", 1)]),
        ("2::so-::b", [("so-", 2), ("b", 1)]),
        ("2::year 2022 ::, b", [("year 2022 ", 2), (", b", 1)]),
        # brackets: those inside multiply, and a number ends the effect of those before it
        ("{a}, b", [("a", 1.05), (", b", 1)]),
        ("2::{a} b::", [("a", 2.1), (" b", 2)]),
        ("2::[a]::", [("a", 2 / 1.05)]),
        ("-1::{{a}}::", [("a", -(1.05**2))]),
        ("0::{a}::", [("a", 0)]),
        ("{2::a::", [("a", 2)]),
        ("{2::a::b}", [("a", 2), ("b", 1)]),
        ("{2::a::}, b", [("a", 2), (", b", 1 / 1.05)]),
        ("{{a::b", [("a", 1.05**2), ("b", 1)]),
        ("[2}3::a", [("2", 1 / 1.05), ("a", 3)]),
        ("(a:1.2)", [("(a:1.2)", 1)]),
        # bars
        ("2girls|girl, hat|boy", [("2girls, girl, hat, boy", 1)]),
        ("2girls, 2::rain|girl|{boy", [("2girls, ", 1), ("rain", 2), (", girl, ", 1), ("boy", 1.05)]),
        ("a:2|b:0", [("a:2, b:0", 1)]),
        ("a|| b|c ||d|e", [("a|| b|c ||d, e", 1)]),
        ("a||b|c", [("a||b|c", 1)]),
        ("a|||b|c", [("a|||b|c", 1)]),
        ("a|b|c|d|e|f|g|h", [("a, b, c, d, e, f|g|h", 1)]),
        ("| |a||", [("a||", 1)]),
        ("2::|a", [("a", 1)]),
        ("", []),
    ],
)  # fmt: skip
def test_a_text_has_these_weights(text, runs):
    (segment,) = parse(text, "nai4")
    assert [run for run, _ in segment.runs] == [run for run, _ in runs]
    assert [weight for _, weight in segment.runs] == pytest.approx([weight for _, weight in runs])


def test_v3_reads_numbers_literally():
    assert parse("2::a::, b")[0].runs == (("2::a::, b", 1.0),)


def encoded(positive, negative=""):
    (prompt,), (negative_prompt,) = parse_pair(positive, negative, "nai4")
    return prompt.runs, negative_prompt.runs


@pytest.mark.parametrize(
    ("positive", "negative", "prompt", "negative_prompt"),
    [
        ("1girl, -2::hat::, smile", "bad", [("1girl, smile", 1)], [("bad, ", 1), ("hat", 2)]),
        ("1girl, -1::hat::, smile", "bad", [("1girl, smile", 1)], [("bad, hat", 1)]),
        ("1girl, 0::hat::, smile", "bad", [("1girl, smile", 1)], [("bad", 1)]),
        ("0::hat::, 1girl", "", [("1girl", 1)], []),
        ("1girl, -1::hat::", "", [("1girl", 1)], [("hat", 1)]),
        ("-1::hat::", "bad", [], [("bad, hat", 1)]),
        ("1girl", "bad, -0.5::smile::", [("1girl, ", 1), ("smile", 0.5)], [("bad", 1)]),
        ("-2::a::", "-3::b::", [("b", 3)], [("a", 2)]),
        ("-2::a, ::-3::, b::c", "", [("c", 1)], [("a", 2), (", ", 1), ("b", 3)]),
        ("a -1::b::c", "", [("a c", 1)], [("b", 1)]),
        ("{a}, -1::{b}::, [c]", "", [("a", 1.05), (", ", 1), ("c", 1 / 1.05)], [("b", 1.05)]),
        ("-1:: , ::a", "", [("a", 1)], []),
        ("a|girl, -1::hat", "bad", [("a, girl", 1)], [("bad, hat", 1)]),
        # lettering is no part of the prompt, but a word of a negative one
        ("sign, teXt: hi, -1::you", "text: x", [("sign", 1)], [("text: x", 1)]),
        ("2::sign\nText: hi|girl", "", [("sign", 2), (", girl", 1)], []),
        ("no text::, a", "", [("no text, a", 1)], []),
        ("context: a", "", [("context: a", 1)], []),
    ],
)
def test_text_of_negative_weight_is_encoded_with_the_other_prompt(
    positive, negative, prompt, negative_prompt
):
    for found, expected in zip(encoded(positive, negative), (prompt, negative_prompt), strict=True):
        assert [run for run, _ in found] == [run for run, _ in expected]
        assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])


@pytest.mark.parametrize(
    ("captions", "text"),
    [
        (["2girls", "girl, hat", "boy"], "2girls, girl, hat, boy"),
        (["2::rain", "girl"], "2::rain ::, girl"),
        (["2::year 2022", "girl"], "2::year 2022 ::, girl"),
        (["{rain", "girl", "boy]"], "{rain ::, girl, boy]"),
        (["{rain}", "girl"], "{rain}, girl"),
        (["a, teXt: hi", "girl, text: yo"], "a, girl, teXt: hi, text: yo"),
        ([], ""),
    ],
)
def test_captions_are_joined_without_sharing_their_emphasis(captions, text):
    assert join_captions(captions) == text
    for found, expected in zip(encoded(text), encoded("|".join(captions)), strict=True):
        assert [(run.strip(), weight) for run, weight in found] == [(run.strip(), w) for run, w in expected]


@given(HOSTILE, HOSTILE)
def test_every_text_parses_to_finite_weights_and_letters_of_its_own(positive, negative):
    letters = [letter for letter in positive if letter.isalpha()]
    (segment,) = parse(positive, "nai4")
    assert [letter for run, _ in segment.runs for letter in run if letter.isalpha()] == letters
    for runs in encoded(positive, negative):
        assert all(isfinite(weight) and weight > 0 and run for run, weight in runs)


@given(HOSTILE)
def test_bars_split_a_text_into_at_most_six_captions(text):
    captions = split_captions(text)
    assert "|".join(captions) == text
    assert 1 <= len(captions) <= 6
    assert split_captions(strip_lettering(text)) or not text


@given(HOSTILE)
def test_a_text_without_the_marks_of_v4_means_the_same_as_in_v3(text):
    plain = text.replace("|", "").replace(":", "")
    assert parse(plain, "nai4")[0].runs == (parse(plain)[0].runs if re.sub(r"[{}\[\]\s]", "", plain) else ())


@pytest.mark.parametrize("text", LONG)
def test_hostile_texts_take_linear_time(text):
    started = process_time()
    encoded(text, text)
    join_captions([text, text])
    assert process_time() - started < 20  # quadratic: minutes
