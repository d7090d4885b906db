import pytest
import torch

from pipelines.errors import InvalidPrompt
from pipelines.job import Character, Prompts
from pipelines.text.encoding import PromptEncoder


class FakeTextEncoder:
    """A text encoder whose hidden states (1, 77, 2) are the ids and their positions."""

    def __init__(self, pad, projects):
        self.pad, self.width, self._projects, self.calls = pad, 4, projects, 0

    def encode(self, ids, vectors=None):
        assert not vectors
        self.calls += 1
        hidden = torch.stack([ids[0].float(), torch.arange(77.0)], dim=-1)[None]
        return hidden, ids[:, 1:2].float() if self._projects else None


@pytest.fixture
def encoder():
    return PromptEncoder([FakeTextEncoder(49407, False), FakeTextEncoder(0, True)], torch.device("cpu"))


def encode(encoder, text, negative=""):
    return encoder.encode(Prompts(text, negative))


def test_each_text_encoder_uses_its_own_pad_id(encoder):
    context = encode(encoder, "cat").positive.context
    assert context.shape == (77, 4)
    assert context[:4, 0].tolist() == [49406, 2368, 49407, 49407]
    assert context[:4, 2].tolist() == [49406, 2368, 49407, 0]


def test_pooled_is_the_first_chunks_and_is_not_weighted(encoder):
    long = "cat " * 80
    assert encode(encoder, long).positive.pooled.tolist() == [2368]
    assert torch.equal(encode(encoder, "{{{cat}}}").positive.pooled, encode(encoder, "cat").positive.pooled)


def test_both_prompts_have_the_length_of_the_longer_one_and_are_filled_with_empty_chunks(encoder):
    embeddings = encode(encoder, "cat " * 160, "dog")
    assert embeddings.positive.context.shape[0] == 3 * 77
    assert torch.equal(embeddings.negative.context[77:154], embeddings.empty.context[:77])
    assert embeddings.negative.context[78, 0] == 49407


def test_a_weight_scales_a_tokens_difference_from_the_empty_prompt(encoder):
    plain, empty = encode(encoder, "cat dog").positive.context, encode(encoder, "").positive.context
    heavy = encode(encoder, "cat {dog}").positive.context
    # 1e-5: float32 has no more digits for ids up to 49,407
    torch.testing.assert_close(heavy[2], empty[2] + 1.05 * (plain[2] - empty[2]), rtol=1e-5, atol=1e-3)
    assert torch.equal(heavy[:2], plain[:2])
    assert torch.equal(heavy[3:], plain[3:])


def test_a_mix_is_the_weighted_mean_of_its_parts(encoder):
    a, b = (encode(encoder, text).positive for text in ("cat", "dog"))
    mix = encode(encoder, "cat:3|dog:1").positive
    torch.testing.assert_close(mix.context, 0.75 * a.context + 0.25 * b.context)
    torch.testing.assert_close(mix.pooled, 0.75 * a.pooled + 0.25 * b.pooled)


def test_an_empty_part_of_a_mix_has_no_weight(encoder):
    torch.testing.assert_close(
        encode(encoder, "cat|").positive.context, encode(encoder, "cat").positive.context
    )


@pytest.mark.parametrize("text", ["a:0|b:0", "|"])
def test_a_mix_without_weight_is_refused(encoder, text):
    with pytest.raises(InvalidPrompt, match="weight 0"):
        encode(encoder, text)


def test_encoded_chunks_are_cached():
    text_encoder = FakeTextEncoder(49407, True)
    encoder = PromptEncoder([text_encoder], torch.device("cpu"))
    first = encode(encoder, "cat").positive
    calls = text_encoder.calls
    again = encode(encoder, "cat").positive
    assert text_encoder.calls == calls
    assert torch.equal(first.context, again.context)


def test_a_character_is_encoded_with_the_base_prompt_and_as_long_as_it(encoder):
    people = (Character("hat", "", 0.2, 0.5), Character("cat " * 80, "dog", 0.8, 0.5))
    found = encoder.encode(Prompts("2girls", "bad", characters=people))
    alone = encoder.encode(Prompts("2girls, hat", "bad"))
    first, second = found.characters
    assert torch.equal(first.positive.context[:77], alone.positive.context)
    assert (first.negative, first.center, second.center) == (None, (0.2, 0.5), (0.8, 0.5))
    assert torch.equal(second.negative.context[:77], encode(encoder, "bad, dog").positive.context)
    lengths = {len(part.context) for part in (found.positive, first.positive, second.positive)}
    assert lengths == {154}


def test_weights_of_a_character_below_zero_give_it_a_negative_of_its_own(encoder):
    people = (Character("-1::hat::", "", 0.2, 0.5),)
    (found,) = encoder.encode(Prompts("2girls", "bad", "nai4", characters=people)).characters
    assert torch.equal(found.negative.context, encode(encoder, "bad, hat").positive.context)
