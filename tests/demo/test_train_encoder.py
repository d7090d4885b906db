from typing import Any

import numpy as np
import pytest
import torch

from demo.adapter import EMBEDDING_WIDTH, TOKENS, Adapter, preprocess
from demo.characters import Character
from demo.model import DemoModel
from demo.samples import REFERENCE_SIZES, SampleImages
from demo.scenes import Scene
from demo.shapes import Shape
from demo.train_encoder import (
    Tagger,
    build_targets,
    list_labels,
    list_vocabulary,
    load_encoder,
    measure_recall,
)

GIRL = Character(
    boy=False, hair="red", haircut="long hair", eyes="blue", mouth="smile", shirt="green", skin="light"
)
SCENES = Scene((GIRL,), "white", "upper body"), Scene((Shape("apple", "green"),) * 2, "black")


@pytest.fixture(scope="module")
def tagger():
    torch.manual_seed(3)
    return Tagger().eval()


def test_what_shapes_are_is_said_word_by_word_too():
    assert list_labels(SCENES[0]) == set(SCENES[0].tags())
    assert list_labels(SCENES[1]) == {
        "no humans", "2 apples", "green apple", "apple", "green", "black background"
    }  # fmt: skip


def test_a_tagger_is_to_say_every_tag_and_no_other():
    words = list_vocabulary()
    for scene, row in zip(SCENES, build_targets(SCENES), strict=True):
        assert {word for word, said in zip(words, row.tolist(), strict=True) if said} == list_labels(scene)


def test_what_it_finds_is_counted_among_what_is_there(tagger):
    right = build_targets(SCENES)
    assert measure_recall(right - 0.5, right) == 1
    assert measure_recall(0.5 - right, right) == 0
    said, tokens = tagger(SampleImages(1)(SCENES))
    assert said.shape == right.shape
    assert tokens.shape == (len(SCENES), TOKENS, EMBEDDING_WIDTH)


def test_a_scene_is_drawn_once_in_one_of_the_forms():
    gallery = SampleImages(4)
    pictures = gallery([SCENES[0]] * 2 + [SCENES[1]])
    assert torch.equal(pictures[0], pictures[1])
    assert torch.equal(gallery([SCENES[1]])[0], pictures[2])
    rng = np.random.default_rng(4)
    form = REFERENCE_SIZES[int(rng.integers(len(REFERENCE_SIZES)))]
    assert torch.equal(pictures[0], preprocess(SCENES[0].draw(*form, rng)))


def test_a_trained_encoder_comes_from_the_averages(tagger, tmp_path):
    torch.save({"average": tagger.state_dict()}, tmp_path / "encoder.pt")
    found = load_encoder(tmp_path).encoder.state_dict()
    assert all(torch.equal(weight, found[name]) for name, weight in tagger.encoder.state_dict().items())


def test_an_adapter_begins_with_the_keys_and_values_of_the_text():
    unet: Any = DemoModel().unet
    adapter = Adapter(unet)
    looks: Any = adapter.looks
    for name, look in zip(adapter.names, looks, strict=True):
        own = unet.get_submodule(name)
        assert torch.equal(look.to_k_ip[0].weight, own.to_k.weight)
        assert torch.equal(look.to_v_ip[0].weight, own.to_v.weight)
