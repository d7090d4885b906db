"""Textual inversions: their files, the words in prompts, and what the text encoders make of them."""

import pytest
import torch
from safetensors.torch import save_file

from pipelines.errors import UnusableFile, WeightsError
from pipelines.job import Inversion, Prompts
from pipelines.text.encoding import PromptEncoder
from pipelines.text.inversions import read_inversion
from pipelines.text.tokens import EOS, split_chunks, tokenize
from pipelines.text.words import WordFinder
from pipelines.weights.architecture import TextEncoderConfig, clip_config
from pipelines.weights.checkpoint import fingerprint
from pipelines.weights.networks import ClipTextEncoder, load_state

IDS = WordFinder({"bad hands": (EOS + 1, EOS + 2), "bad": (EOS + 9,)})
WIDTHS = (32, 48)


def write(path, **tensors):
    save_file(tensors, path)
    return path


def name(path, count=2):
    return Inversion(path.stem, path, fingerprint(path), count)


@pytest.mark.parametrize(
    ("tensors", "count"),
    [
        ({"emb_params": torch.ones(3, 768)}, 3),
        ({"<style>": torch.ones(768)}, 1),
        ({"clip_l": torch.ones(4, 768), "clip_g": torch.ones(4, 1280)}, 4),
        ({"clip_g": torch.ones(5, 1280)}, 5),
    ],
)
def test_every_layout_is_read(tmp_path, tensors, count):
    assert read_inversion(write(tmp_path / "a.safetensors", **tensors)).count == count


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"a": torch.ones(2, 768), "b": torch.ones(2, 768)}, "not a textual inversion"),
        ({"weight": torch.ones(2, 3, 768)}, "not a textual inversion"),
        ({"emb_params": torch.ones(76, 768)}, "76 vectors; 1 to 75"),
        ({"emb_params": torch.ones(2, 768, dtype=torch.int8)}, "not a textual inversion"),
        ({"clip_l": torch.ones(4, 768), "clip_g": torch.ones(3, 1280)}, "a different number of vectors"),
    ],
)
def test_other_files_are_refused(tmp_path, tensors, reason):
    with pytest.raises(WeightsError, match=reason):
        read_inversion(write(tmp_path / "a.safetensors", **tensors))


def test_inversions_in_a_loras_file_are_read_by_name(tmp_path):
    path = write(
        tmp_path / "a.safetensors",
        **{
            "lora_unet_x.alpha": torch.ones(()),
            "bundle_emb.hero.clip_l": torch.ones(4, 768),
            "bundle_emb.hero.clip_g": torch.ones(4, 1280),
            "bundle_emb.old.string_to_param.*": torch.ones(2, 768),
            "bundle_emb.bad.a": torch.ones(2, 768),
            "bundle_emb.bad.b": torch.ones(2, 768),
        },
    )
    assert (read_inversion(path, "hero").count, read_inversion(path, "old").count) == (4, 2)
    for name in ("bad", "her", "villain"):
        with pytest.raises(WeightsError, match="not a textual inversion"):
            read_inversion(path, name)


def test_vectors_for_another_family_are_refused(tmp_path):
    file = read_inversion(
        write(tmp_path / "a.safetensors", clip_l=torch.ones(1, 768), clip_g=torch.ones(1, 1280))
    )
    file.check_widths((768, 1280))
    with pytest.raises(WeightsError, match="1280 values, this model's text encoders take 768;"):
        file.check_widths((768,))
    with pytest.raises(WeightsError, match="take 1024"):
        file.check_widths((1024, 1280))


def test_vectors_count_as_tokens_and_have_the_weight_of_their_word():
    (chunk,) = split_chunks([("a ", 1.0), ("bad hands", 1.5)], inversions=IDS)
    assert chunk.ids == (*tokenize("a"), EOS + 1, EOS + 2)
    assert chunk.weights == (1.0, 1.5, 1.5)


def test_an_inversion_is_not_split_between_chunks():
    first, second = split_chunks([("a " * 74 + "bad hands b", 1.0)], inversions=IDS)
    assert first.ids == tuple(tokenize("a")) * 74
    assert second.ids == (EOS + 1, EOS + 2, *tokenize("b"))


@pytest.fixture(scope="module")
def encoders():
    torch.manual_seed(3)
    built = []
    for index, width in enumerate(WIDTHS):
        config = clip_config(width=width, layers=3, heads=2, activation="gelu")
        encoder = ClipTextEncoder(
            TextEncoderConfig(config, "clip", EOS, projection=index == 1, final_norm=False)
        )
        shapes = {key: tensor.shape for key, tensor in encoder.module.state_dict().items()}
        load_state(encoder.module, {key: torch.randn(shape) * 0.1 for key, shape in shapes.items()})
        built.append(encoder)
    return built


def encode_with_more_tokens(encoder, ids, vectors):
    """Return what transformers computes with a larger vocabulary: the vectors as tokens from 49408 on."""
    embedding = encoder.core.embeddings.token_embedding
    original = embedding.weight
    embedding.weight = torch.nn.Parameter(torch.cat([original, vectors]), requires_grad=False)
    output = encoder.module(torch.tensor([ids]), output_hidden_states=True)
    embedding.weight = original
    return output


def test_hidden_states_and_pooled_vector_equal_those_of_a_larger_vocabulary(encoders, tmp_path):
    vectors = [torch.randn(2, width) for width in WIDTHS]
    file = write(tmp_path / "style.safetensors", clip_l=vectors[0], clip_g=vectors[1])
    prompt = PromptEncoder(encoders, torch.device("cpu"))
    found = prompt.encode(Prompts("cat, style, dog", inversions=(name(file),))).positive
    head, tail = tokenize("cat, "), tokenize(", dog")
    ids = [49406, *head, EOS + 1, EOS + 2, *tail]
    ids += [EOS] * (77 - len(ids))
    outputs = [
        encode_with_more_tokens(encoder, ids, part) for encoder, part in zip(encoders, vectors, strict=True)
    ]
    expected = torch.cat([output.hidden_states[-2][0] for output in outputs], dim=-1)
    torch.testing.assert_close(found.context, expected, atol=1e-5, rtol=1e-5)
    pooled = encoders[1].module.text_projection(outputs[1].last_hidden_state[:, ids.index(EOS)])[0]
    torch.testing.assert_close(found.pooled, pooled, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found.context, prompt.encode(Prompts("cat, style, dog")).positive.context)


def test_words_in_one_file_have_the_vectors_of_their_names(encoders, tmp_path):
    vectors = {word: [torch.randn(2, width) for width in WIDTHS] for word in ("hero", "foe")}
    bundle = {
        f"bundle_emb.{word}.{key}": part
        for word, parts in vectors.items()
        for key, part in zip(("clip_l", "clip_g"), parts, strict=True)
    }
    path = write(tmp_path / "lora.safetensors", **bundle)
    prompt = PromptEncoder(encoders, torch.device("cpu"))
    contexts = {}
    for word, parts in vectors.items():
        bundled = Inversion(word, path, fingerprint(path), 2, is_bundled=True)
        contexts[word] = prompt.encode(Prompts(f"cat, {word}", inversions=(bundled,))).positive.context
        alone = write(tmp_path / f"{word}.safetensors", clip_l=parts[0], clip_g=parts[1])
        own = prompt.encode(Prompts(f"cat, {word}", inversions=(name(alone),))).positive.context
        assert torch.equal(contexts[word], own)
    assert not torch.equal(contexts["hero"], contexts["foe"])


def test_files_of_one_name_are_not_mixed_up(encoders, tmp_path):
    prompt = PromptEncoder(encoders, torch.device("cpu"))
    contexts = []
    for index in range(3):
        (tmp_path / str(index // 2)).mkdir(exist_ok=True)
        file = write(
            tmp_path / str(index // 2) / "style.safetensors", clip_g=torch.full((1, 48), float(index))
        )
        contexts.append(prompt.encode(Prompts("style", inversions=(name(file, 1),))).positive.context)
    assert not torch.allclose(contexts[0], contexts[1])
    assert not torch.allclose(contexts[1], contexts[2])


def test_a_file_that_changed_since_the_request_or_is_damaged_is_refused(encoders, tmp_path):
    prompt = PromptEncoder(encoders, torch.device("cpu"))
    file = write(tmp_path / "style.safetensors", clip_l=torch.ones(1, 32))
    asked = Prompts("style", inversions=(name(file, 1),))
    write(file, clip_l=torch.zeros(1, 32))
    with pytest.raises(UnusableFile, match="textual inversion 'style': it has changed"):
        prompt.encode(asked)
    for value, reason in (
        (torch.nan, "clip_l contains NaN or infinity"),
        (1e30, "clip_l has values above 65504"),
    ):
        write(file, clip_l=torch.full((1, 32), value))
        with pytest.raises(UnusableFile, match=reason):
            prompt.encode(Prompts("style", inversions=(name(file, 1),)))
    asked = Prompts("style", inversions=(name(write(file, clip_l=torch.ones(1, 32)), 1),))
    file.unlink()
    with pytest.raises(UnusableFile, match="textual inversion 'style': no such file"):
        prompt.encode(asked)
