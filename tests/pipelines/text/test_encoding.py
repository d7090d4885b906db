import pytest
import torch

from pipelines.errors import InvalidPrompt
from pipelines.job import Prompts
from pipelines.text.encoding import PromptEncoder


class Tower:
    """An encoder whose output says which ids it read, and where: hidden (1, 77, 2)."""

    def __init__(self, pad, projects):
        self.pad, self._projects, self.calls = pad, projects, 0

    def encode(self, ids):
        self.calls += 1
        hidden = torch.stack([ids[0].float(), torch.arange(77.0)], dim=-1)[None]
        return hidden, ids[:, 1:2].float() if self._projects else None


@pytest.fixture
def encoding():
    return PromptEncoder([Tower(49407, False), Tower(0, True)], torch.device("cpu"))


def encode(encoding, text, negative=""):
    return encoding.encode(Prompts(text, negative))


def test_each_encoder_pads_in_its_own_way(encoding):
    context = encode(encoding, "cat").positive.context
    assert context.shape == (77, 4)
    assert context[:4, 0].tolist() == [49406, 2368, 49407, 49407]
    assert context[:4, 2].tolist() == [49406, 2368, 49407, 0]


def test_pooled_comes_from_the_first_chunk_and_knows_no_weights(encoding):
    long = "cat " * 80
    assert encode(encoding, long).positive.pooled.tolist() == [2368]
    assert torch.equal(encode(encoding, "{{{cat}}}").positive.pooled, encode(encoding, "cat").positive.pooled)


def test_both_sides_are_as_long_as_the_longer_one_and_filled_with_the_empty_prompt(encoding):
    texts = encode(encoding, "cat " * 160, "dog")
    assert texts.positive.context.shape[0] == 3 * 77
    assert torch.equal(texts.negative.context[77:154], texts.empty.context[:77])
    assert texts.negative.context[78, 0] == 49407


def test_a_weight_moves_a_token_along_the_line_from_the_empty_prompt(encoding):
    plain, empty = encode(encoding, "cat dog").positive.context, encode(encoding, "").positive.context
    heavy = encode(encoding, "cat {dog}").positive.context
    # 1e-5: ids of 49,407 leave float32 no more digits than that
    torch.testing.assert_close(heavy[2], empty[2] + 1.05 * (plain[2] - empty[2]), rtol=1e-5, atol=1e-3)
    assert torch.equal(heavy[:2], plain[:2])
    assert torch.equal(heavy[3:], plain[3:])


def test_a_mix_is_the_weighted_mean_of_its_parts(encoding):
    a, b = (encode(encoding, text).positive for text in ("cat", "dog"))
    mix = encode(encoding, "cat:3|dog:1").positive
    torch.testing.assert_close(mix.context, 0.75 * a.context + 0.25 * b.context)
    torch.testing.assert_close(mix.pooled, 0.75 * a.pooled + 0.25 * b.pooled)


def test_an_empty_part_of_a_mix_counts_for_nothing(encoding):
    torch.testing.assert_close(
        encode(encoding, "cat|").positive.context, encode(encoding, "cat").positive.context
    )


@pytest.mark.parametrize("text", ["a:0|b:0", "|"])
def test_a_mix_of_nothing_is_refused(encoding, text):
    with pytest.raises(InvalidPrompt, match="weight 0"):
        encode(encoding, text)


def test_what_was_encoded_is_remembered_and_the_same():
    tower = Tower(49407, True)
    encoding = PromptEncoder([tower], torch.device("cpu"))
    first = encode(encoding, "cat").positive
    calls = tower.calls
    again = encode(encoding, "cat").positive
    assert tower.calls == calls
    assert torch.equal(first.context, again.context)
