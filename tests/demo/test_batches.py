from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from demo.batches import BatchLoss, SizeGroup, Stage, autocast_bfloat16
from demo.checkpoint import DEMO
from demo.latents import LatentCache, make_scene
from demo.model import load_model

SMALL, LARGE = (64, 64), (96, 96)


def load_cache(size, count):
    scenes = [make_scene(size, number)[0] for number in range(count)]
    level = 0.0 if size == SMALL else 1.0
    return LatentCache(size, scenes, torch.full((count, 4, size[1] // 8, size[0] // 8), level))


class RecordingModel:
    """A model that predicts zeros and records its inputs."""

    def __init__(self):
        self.calls = []

    def __call__(self, noisy, times, captions, ids, image_tokens, pooled_only):
        call = SimpleNamespace(noisy=noisy, ids=ids, image_tokens=image_tokens, pooled_only=pooled_only)
        self.calls.append(call)
        return torch.zeros_like(noisy)


def build_loss(*groups, **stage) -> Any:
    return BatchLoss(Stage(groups, 10, 1e-3, **stage), load_cache)


def test_a_step_has_one_batch_of_each_size_group():
    model = RecordingModel()
    build_loss(SizeGroup({SMALL: 9}, 3), SizeGroup({LARGE: 9}, 2)).compute(model, 0)
    assert [tuple(call.noisy.shape) for call in model.calls] == [(3, 4, 8, 8), (2, 4, 12, 12)]
    assert [call.ids[:, -2:].tolist() for call in model.calls] == [[[64, 64]] * 3, [[96, 96]] * 2]


def test_every_image_counts_the_same():
    groups = SizeGroup({SMALL: 9}, 3), SizeGroup({LARGE: 9}, 1)
    loss = build_loss(*groups)
    rng = np.random.default_rng((10, 0))
    batches = [(loss._caches[group][int(rng.integers(1))], count) for group, count in ((0, 3), (1, 1))]
    losses = [loss._compute_batch(RecordingModel(), rng, None, *cache, count) for cache, count in batches]
    expected = (3 * losses[0] + losses[1]) / 4
    torch.testing.assert_close(build_loss(*groups).compute(RecordingModel(), 0), expected)


def test_references_are_encoded_from_the_scenes_of_the_batch():
    model, batches = RecordingModel(), []
    build_loss(SizeGroup({SMALL: 9}, 3)).compute(model, 0, lambda scenes: batches.append(scenes) or "tokens")
    assert len(batches[0]) == 3
    assert model.calls[0].image_tokens == "tokens"


def test_the_given_share_of_captions_reaches_the_unet_through_the_pooled_vector_only():
    for share in (0.0, 0.5, 1.0):
        model: Any = RecordingModel()
        build_loss(SizeGroup({SMALL: 9}, 200), pooled_only_share=share).compute(model, 0)
        assert float(model.calls[0].pooled_only.float().mean()) == pytest.approx(
            share, abs=0.15 if share == 0.5 else 0
        )


def test_a_step_has_the_same_batches_without_the_previous_steps():
    one, other = build_loss(SizeGroup({SMALL: 9}, 3)), build_loss(SizeGroup({SMALL: 9}, 3))
    first = float(one.compute(RecordingModel(), 0))
    assert float(one.compute(RecordingModel(), 1)) == float(other.compute(RecordingModel(), 1)) != first


def test_processes_have_the_same_sizes_but_different_scenes(monkeypatch):
    batches = []
    for rank in (0, 1):
        monkeypatch.setattr("demo.batches.get_rank", lambda rank=rank: rank)
        model, scenes = RecordingModel(), []
        loss = build_loss(SizeGroup({SMALL: 9, LARGE: 9}, 6))
        for step in range(4):
            loss.compute(model, step, scenes.extend)
        batches.append(([call.noisy.shape for call in model.calls], scenes))
    assert batches[0][0] == batches[1][0]
    assert batches[0][1] != batches[1][1]


def test_a_size_group_can_be_left_out_of_most_steps():
    model, loss = RecordingModel(), build_loss(SizeGroup({SMALL: 9}, 3), SizeGroup({LARGE: 9}, 2, every=3))
    for step in range(4):
        loss.compute(model, step)
    assert [len(call.noisy) for call in model.calls] == [3, 2, 3, 3, 3, 2]


def test_tag_weights_make_scenes_more_frequent():
    chosen = []
    loss = build_loss(SizeGroup({SMALL: 200}, 500), tag_weights={"apple": 10.0})
    loss.compute(RecordingModel(), 0, chosen.extend)
    scenes = load_cache(SMALL, 200).scenes
    apples = [any(tag.endswith("apple") for tag in scene.subject_tags()) for scene in scenes]
    share = np.mean([any(tag.endswith("apple") for tag in scene.subject_tags()) for scene in chosen])
    expected = 10 * sum(apples) / (10 * sum(apples) + apples.count(False))
    assert 0 < np.mean(apples) < 0.1
    assert abs(share - expected) < 0.07  # three standard deviations of 500


def test_the_loss_in_bfloat16_is_nearly_the_same():
    """bfloat16 has 8 bits, an error of 0.4 % in the output of each layer; in the loss of a batch they mostly cancel."""
    model = load_model(DEMO)[0]
    losses = []
    for in_bfloat16 in (False, True):
        model.zero_grad()
        batch_loss = BatchLoss(
            Stage((SizeGroup({SMALL: 9}, 4),), 10, 1e-3), load_cache, in_bfloat16=in_bfloat16
        )
        loss = batch_loss.compute(model.requires_grad_(True), 0)
        loss.backward()
        weight: Any = model.unet.conv_in.weight
        assert loss.dtype == weight.grad.dtype == torch.float32
        losses.append(loss.item())
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


def test_attention_stays_in_float32_under_autocast_bfloat16():
    states = torch.randn(1, 2, 8, 16, requires_grad=True)
    with autocast_bfloat16():
        assert (states @ states.mT).dtype == torch.bfloat16
        output = scaled_dot_product_attention(states.bfloat16(), states.bfloat16(), states.bfloat16())
    assert output.dtype == torch.float32
    rounded = states.bfloat16().float()
    torch.testing.assert_close(output, scaled_dot_product_attention(rounded, rounded, rounded))
