"""Training the pooled vector to predict a caption's tags."""

import pytest
import torch

from demo.pooled import label_captions, train_pooled
from demo.text_encoders import TextEncoders, split_captions

pytestmark = pytest.mark.slow


def test_captions_are_labeled_with_their_tags():
    assert label_captions(["red, hat", "", "hat"]).tolist() == [[0, 1, 1], [1, 0, 0], [0, 1, 0]]


def test_training_lowers_the_loss_and_keeps_the_context():
    torch.manual_seed(3)
    encoders, captions = TextEncoders(), split_captions(["1girl, red hair, blue eyes", "no humans"], 1)
    context, pooled = encoders(captions)
    loss = train_pooled(encoders, steps=60, captions=300)
    new_context, new_pooled = encoders(captions)
    assert torch.equal(new_context, context)
    assert not torch.allclose(new_pooled, pooled, atol=0.1)
    assert loss < train_pooled(TextEncoders(), steps=1, captions=300) / 2
