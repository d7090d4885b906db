"""Names in a text as words of their own."""

import pytest

from pipelines.text.words import WordFinder, fold_name

WORDS = WordFinder({
    "bad hands": 1, "bad": 2, "a, b": 3, "(x)": 4, "cafe\u0301": 5, "STRASSE": 6, "İx": 7, "v1.5": 8, "a:b": 9,
})  # fmt: skip


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a bad hands, b", ["a ", 1, ", b"]),
        ("Bad Hands", ["", 1, ""]),
        ("bad, {bad}", ["", 2, ", {", 2, "}"]),
        ("bad bad hands", ["", 2, " ", 1, ""]),
        ("badly, unbad, bad-x, x-bad", ["badly, unbad, bad-x, x-bad"]),
        ("embedding:bad,", ["", 2, ","]),
        ("Embedding:BAD.safetensors, x", ["", 2, ", x"]),
        ("embedding:v1.5.pt embedding:v1.5.", ["", 8, " ", 8, "."]),
        ("bad.safetensors", ["", 2, ".safetensors"]),
        ("unembedding:bad", ["unembedding:", 2, ""]),
        ("a, b, (x), a:b", ["", 3, ", ", 4, ", ", 9, ""]),
        ("a(x) (x)y", ["a(x) (x)y"]),
        ("caf\u00e9 cafe\u0301", ["", 5, " ", 5, ""]),
        ("strasse straße \u017ftrasse", ["", 6, " straße \u017ftrasse"]),
        ("İX ix i̇x", ["", 7, " ix i̇x"]),
        ("", [""]),
    ],
)
def test_names_are_found_in_any_case_and_form(text, pieces):
    assert list(WORDS.split(text)) == pieces


def test_a_text_without_names_is_left_as_it_is():
    assert list(WordFinder({"": 1}).split("cafe\u0301, bad")) == ["cafe\u0301, bad"]


def test_a_folded_name_is_as_long_as_its_nfc_form():
    assert [fold_name(name) for name in ("ABC", "Straße", "İ", "ÇA")] == ["abc", "straße", "İ", "ça"]


def test_five_thousand_names_are_found_among_each_other():
    finder = WordFinder({f"style {number}": number for number in range(5000)})
    found = finder.split("style " * 6000 + "style 4999")
    assert [piece for piece in found if isinstance(piece, int)] == [4999]
