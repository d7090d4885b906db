import gzip
import random
from importlib.resources import files
from typing import Any

import pytest
from transformers import CLIPTokenizer

from pipelines.text.tokens import BOS, EMPTY, EOS, clip_tokenizer, split_chunks, tokenize, tokenize_runs

ODD = [
    "a",
    "b",
    " ",
    "  ",
    "\n",
    ",",
    "1",
    "2",
    "é",
    "É",
    "ß",
    "日本",
    "😀",
    "{",
    "_",
    "@",
    "'s",
    "ﬁ",
    "\u0301",
    "girl",
]


def test_the_vocabulary_is_clips():
    assert clip_tokenizer().get_vocab_size() == 49408
    assert tokenize("a photo of a cat") == [320, 1125, 539, 320, 2368]


def test_every_text_is_cut_as_transformers_cuts_it():
    merges = (
        gzip.decompress(files("pipelines.text").joinpath("clip/merges.txt.gz").read_bytes())
        .decode()
        .split("\n")
    )
    pairs: Any = [tuple(line.split()) for line in merges]
    theirs = CLIPTokenizer(vocab=clip_tokenizer().get_vocab(), merges=pairs)
    pick = random.Random(0)
    for _ in range(500):
        text = "".join(pick.choice(ODD) for _ in range(pick.randint(0, 20)))
        assert tokenize(text) == theirs(text)["input_ids"][1:-1], text


def test_the_end_of_text_cannot_be_typed():
    assert EOS not in tokenize("a <|endoftext|> b")


def test_chunks_lose_nothing_up_to_the_limit():
    runs = [("1girl, " * 60, 1.0), ("smile", 1.1)]
    parts = split_chunks(runs)
    assert [token for part in parts for token in part.ids] == [token for token, _ in tokenize_runs(runs)]
    assert [len(part.ids) for part in parts] == [75, 75, 31]
    assert parts[-1].weights[-1] == 1.1


def test_text_beyond_three_chunks_is_cut():
    assert sum(len(part.ids) for part in split_chunks([("cat " * 300, 1.0)])) == 225


def test_no_text_is_one_empty_chunk():
    assert split_chunks([]) == (EMPTY,)
    assert EMPTY.pad_ids(0) == (BOS, EOS, *[0] * 75)


def test_the_seams_of_2023_are_dropped_on_request():
    ids = [token for token, _ in tokenize_runs([("cat dog " * 90, 1.0)])]
    kept = [token for place, token in enumerate(ids, 1) if place not in (74, 75, 76, 149, 150, 151)]
    found = [token for part in split_chunks([("cat dog " * 90, 1.0)], drop_seams=True) for token in part.ids]
    assert found == kept


@pytest.mark.parametrize(("weight", "applied"), [(1e-9, 0.01), (1e9, 100.0), (1.05, 1.05)])
def test_weights_are_kept_within_reason(weight, applied):
    assert tokenize_runs([("cat", weight)])[0][1] == applied
