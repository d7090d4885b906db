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


def test_kinds_and_colors_of_shapes_are_labels_too():
    assert list_labels(SCENES[0]) == set(SCENES[0].tags())
    assert list_labels(SCENES[1]) == {
        "no humans", "2 apples", "green apple", "apple", "green", "black background"
    }  # fmt: skip


def test_the_targets_of_a_scene_are_its_labels():
    vocabulary = list_vocabulary()
    for scene, row in zip(SCENES, build_targets(SCENES), strict=True):
        labels = {label for label, target in zip(vocabulary, row.tolist(), strict=True) if target}
        assert labels == list_labels(scene)


def test_recall_counts_the_target_labels_with_positive_logits(tagger):
    targets = build_targets(SCENES)
    assert measure_recall(targets - 0.5, targets) == 1
    assert measure_recall(0.5 - targets, targets) == 0
    logits, tokens = tagger(SampleImages(1)(SCENES))
    assert logits.shape == targets.shape
    assert tokens.shape == (len(SCENES), TOKENS, EMBEDDING_WIDTH)


def test_a_scene_is_drawn_once_at_one_of_the_sizes():
    draw_samples = SampleImages(4)
    images = draw_samples([SCENES[0]] * 2 + [SCENES[1]])
    assert torch.equal(images[0], images[1])
    assert torch.equal(draw_samples([SCENES[1]])[0], images[2])
    rng = np.random.default_rng(4)
    size = REFERENCE_SIZES[int(rng.integers(len(REFERENCE_SIZES)))]
    assert torch.equal(images[0], preprocess(SCENES[0].draw(*size, rng)))


def test_a_trained_encoder_has_the_averaged_weights(tagger, tmp_path):
    torch.save({"average": tagger.state_dict()}, tmp_path / "encoder.pt")
    loaded = load_encoder(tmp_path).encoder.state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in tagger.encoder.state_dict().items())


def test_an_adapter_starts_with_the_keys_and_values_of_the_text():
    unet: Any = DemoModel().unet
    adapter = Adapter(unet)
    processors: Any = adapter.looks
    for name, processor in zip(adapter.names, processors, strict=True):
        text = unet.get_submodule(name)
        assert torch.equal(processor.to_k_ip[0].weight, text.to_k.weight)
        assert torch.equal(processor.to_v_ip[0].weight, text.to_v.weight)
