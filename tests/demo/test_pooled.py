"""The pooled vector learns to tell a caption's tags."""

import torch

from demo.pooled import sum_up, told
from demo.text_encoders import Language, chunked


def test_a_caption_is_told_by_its_tags():
    assert told(["red, hat", "", "hat"]).tolist() == [[0, 1, 1], [1, 0, 0], [0, 1, 0]]


def test_the_summary_learns_and_the_words_stay_as_they_are():
    torch.manual_seed(3)
    language, captions = Language(), chunked(["1girl, red hair, blue eyes", "no humans"], 1)
    context, pooled = language(captions)
    loss = sum_up(language, steps=60, captions=300)
    again, summary = language(captions)
    assert torch.equal(again, context)
    assert not torch.allclose(summary, pooled, atol=0.1)
    assert loss < sum_up(Language(), steps=1, captions=300) / 2
