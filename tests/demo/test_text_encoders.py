import numpy as np
import torch

from demo.captions import NEUTRAL_TAGS, random_scene, write_caption
from demo.text_encoders import COMMA, TextEncoders, insert_unknown_tokens, list_caption_tokens, split_captions
from pipelines.text.tokens import split_chunks, tokenize


def test_every_token_of_a_caption_is_known():
    rng = np.random.default_rng(1)
    known = set(list_caption_tokens())
    for _ in range(400):
        text = write_caption(random_scene(rng), rng)
        assert {token for part in split_captions([text], 2)[0] for token in part.ids} <= known, text


def test_unfolding_gives_unknown_words_one_vector_and_known_ones_their_own():
    language = TextEncoders()
    tables = [
        tensor
        for state in language.expand_states()
        for name, tensor in state.items()
        if name.endswith("token_embedding.weight")
    ]
    assert [len(table) for table in tables] == [49408, 49408]
    strange, other = (tokenize(word)[0] for word in ("parliament", "carburetor"))
    red, blue = (tokenize(word)[0] for word in ("red", "blue"))
    for table in tables:
        assert torch.equal(table[strange], table[other])
        assert not torch.equal(table[red], table[blue])
        assert not torch.equal(table[red], table[strange])


def test_captions_of_a_batch_are_filled_up_with_empty_chunks():
    long = ", ".join([*NEUTRAL_TAGS] * 3)
    batch = split_captions(["1girl", long, ""], 2)
    assert [len(parts) for parts in batch] == [2, 2, 2]
    assert batch[0][1].ids == ()
    assert [len(parts) for parts in split_captions(["1girl", long], 1)] == [1, 1]


def test_a_batch_is_encoded_as_its_captions_alone():
    language = TextEncoders().eval()
    with torch.inference_mode():
        context, pooled = language(split_captions(["1girl, red hair", "no humans"], 1))
        alone, pooled_alone = language(split_captions(["no humans"], 1))
    assert context.shape == (2, 77, 96)
    torch.testing.assert_close(context[1], alone[0])
    torch.testing.assert_close(pooled[1], pooled_alone[0])


def test_strangers_are_put_between_tags_as_far_as_there_is_room():
    parts = split_chunks([("red hair, hat", 1.0)])
    red, hair, comma, hat = parts[0].ids
    assert comma == COMMA
    assert insert_unknown_tokens(parts, [7, 8], position=0.0)[0].ids == (7, 8, red, hair, comma, hat)
    assert insert_unknown_tokens(parts, [7, 8], position=1.0)[0].ids == (red, hair, comma, 7, 8, hat)
    nearly_full = split_chunks([("red " * 74, 1.0)])
    full = insert_unknown_tokens(nearly_full, [7, 8], position=0.5)[0]
    assert full.ids == (7, *nearly_full[0].ids)
    assert len(full.weights) == 75


def test_folding_takes_back_what_unfolding_gave():
    language, other = TextEncoders(), TextEncoders()
    other.load_expanded_states(language.expand_states())
    for tower, own in zip(language.towers, other.towers, strict=True):
        torch.testing.assert_close(dict(own.state_dict()), dict(tower.state_dict()))
