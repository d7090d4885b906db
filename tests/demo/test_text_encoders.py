import numpy as np
import torch

from demo.captions import NEUTRAL_TAGS, random_scene, write_caption
from demo.text_encoders import COMMA, TextEncoders, insert_unknown_tokens, list_caption_tokens, split_captions
from pipelines.text.tokens import split_chunks, tokenize


def test_captions_have_no_other_than_the_listed_tokens():
    rng = np.random.default_rng(1)
    tokens = set(list_caption_tokens())
    for _ in range(400):
        text = write_caption(random_scene(rng), rng)
        assert {token for chunk in split_captions([text], 2)[0] for token in chunk.ids} <= tokens, text


def test_in_the_full_vocabulary_unknown_words_share_one_embedding():
    tables = [
        tensor
        for state in TextEncoders().expand_states()
        for name, tensor in state.items()
        if name.endswith("token_embedding.weight")
    ]
    assert [len(table) for table in tables] == [49408, 49408]
    unknown, other = (tokenize(word)[0] for word in ("parliament", "carburetor"))
    red, blue = (tokenize(word)[0] for word in ("red", "blue"))
    for table in tables:
        assert torch.equal(table[unknown], table[other])
        assert not torch.equal(table[red], table[blue])
        assert not torch.equal(table[red], table[unknown])


def test_captions_of_a_batch_are_padded_with_empty_chunks():
    long = ", ".join([*NEUTRAL_TAGS] * 3)
    batch = split_captions(["1girl", long, ""], 2)
    assert [len(chunks) for chunks in batch] == [2, 2, 2]
    assert batch[0][1].ids == ()
    assert [len(chunks) for chunks in split_captions(["1girl", long], 1)] == [1, 1]


def test_captions_are_encoded_the_same_in_a_batch_and_alone():
    encoders = TextEncoders().eval()
    with torch.inference_mode():
        context, pooled = encoders(split_captions(["1girl, red hair", "no humans"], 1))
        alone, pooled_alone = encoders(split_captions(["no humans"], 1))
    assert context.shape == (2, 77, 96)
    torch.testing.assert_close(context[1], alone[0])
    torch.testing.assert_close(pooled[1], pooled_alone[0])


def test_unknown_tokens_are_inserted_between_tags_as_long_as_they_fit():
    chunks = split_chunks([("red hair, hat", 1.0)])
    red, hair, comma, hat = chunks[0].ids
    assert comma == COMMA
    assert insert_unknown_tokens(chunks, [7, 8], position=0.0)[0].ids == (7, 8, red, hair, comma, hat)
    assert insert_unknown_tokens(chunks, [7, 8], position=1.0)[0].ids == (red, hair, comma, 7, 8, hat)
    nearly_full = split_chunks([("red " * 74, 1.0)])
    full = insert_unknown_tokens(nearly_full, [7, 8], position=0.5)[0]
    assert full.ids == (7, *nearly_full[0].ids)
    assert len(full.weights) == 75


def test_expanded_states_can_be_loaded_again():
    encoders, other = TextEncoders(), TextEncoders()
    other.load_expanded_states(encoders.expand_states())
    for tower, loaded in zip(encoders.towers, other.towers, strict=True):
        torch.testing.assert_close(dict(loaded.state_dict()), dict(tower.state_dict()))
