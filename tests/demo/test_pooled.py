"""The pooled vector learns to tell a caption's tags."""

import torch

from demo.pooled import label_captions, train_pooled
from demo.text_encoders import TextEncoders, split_captions


def test_a_caption_is_told_by_its_tags():
    assert label_captions(["red, hat", "", "hat"]).tolist() == [[0, 1, 1], [1, 0, 0], [0, 1, 0]]


def test_the_summary_learns_and_the_words_stay_as_they_are():
    torch.manual_seed(3)
    language, captions = TextEncoders(), split_captions(["1girl, red hair, blue eyes", "no humans"], 1)
    context, pooled = language(captions)
    loss = train_pooled(language, steps=60, captions=300)
    again, summary = language(captions)
    assert torch.equal(again, context)
    assert not torch.allclose(summary, pooled, atol=0.1)
    assert loss < train_pooled(TextEncoders(), steps=1, captions=300) / 2
