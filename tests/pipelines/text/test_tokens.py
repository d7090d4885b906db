import gzip
import random
from importlib.resources import files
from typing import Any

import pytest
from transformers import CLIPTokenizer

from pipelines.text.tokens import BOS, EMPTY, EOS, clip_tokenizer, split_chunks, tokenize, tokenize_runs

PIECES = [
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


def test_the_vocabulary_equals_clips():
    assert clip_tokenizer().get_vocab_size() == 49408
    assert tokenize("a photo of a cat") == [320, 1125, 539, 320, 2368]


def test_tokens_equal_those_of_transformers():
    merges = (
        gzip.decompress(files("pipelines.text").joinpath("clip/merges.txt.gz").read_bytes())
        .decode()
        .split("\n")
    )
    pairs: Any = [tuple(line.split()) for line in merges]
    reference = CLIPTokenizer(vocab=clip_tokenizer().get_vocab(), merges=pairs)
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randint(0, 20)))
        assert tokenize(text) == reference(text)["input_ids"][1:-1], text


def test_the_end_token_cannot_be_written_in_a_prompt():
    assert EOS not in tokenize("a <|endoftext|> b")


def test_chunks_keep_every_token_up_to_the_limit():
    runs = [("1girl, " * 60, 1.0), ("smile", 1.1)]
    chunks = split_chunks(runs)
    assert [token for chunk in chunks for token in chunk.ids] == [token for token, _ in tokenize_runs(runs)]
    assert [len(chunk.ids) for chunk in chunks] == [75, 75, 31]
    assert chunks[-1].weights[-1] == 1.1


def test_text_beyond_three_chunks_is_dropped():
    assert sum(len(chunk.ids) for chunk in split_chunks([("cat " * 300, 1.0)])) == 225


def test_empty_text_gives_one_empty_chunk():
    assert split_chunks([]) == (EMPTY,)
    assert EMPTY.pad_ids(0) == (BOS, EOS, *[0] * 75)


def test_seam_tokens_are_dropped_on_request():
    ids = [token for token, _ in tokenize_runs([("cat dog " * 90, 1.0)])]
    kept = [token for position, token in enumerate(ids, 1) if position not in (74, 75, 76, 149, 150, 151)]
    chunks = split_chunks([("cat dog " * 90, 1.0)], drop_seams=True)
    assert [token for chunk in chunks for token in chunk.ids] == kept


@pytest.mark.parametrize(("weight", "applied"), [(1e-9, 0.01), (1e9, 100.0), (1.05, 1.05)])
def test_weights_are_clamped(weight, applied):
    assert tokenize_runs([("cat", weight)])[0][1] == applied
