from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from demo import model as draughtsman
from demo.batches import BatchLoss, SizeGroup, Stage, autocast_bfloat16
from demo.checkpoint import DEMO
from demo.latents import LatentCache, make_scene

SMALL, LARGE = (64, 64), (96, 96)


def opened(size, count):
    scenes = [make_scene(size, number)[0] for number in range(count)]
    level = 0.0 if size == SMALL else 1.0
    return LatentCache(size, scenes, torch.full((count, 4, size[1] // 8, size[0] // 8), level))


class Recorder:
    """A model that predicts nothing and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, noisy, times, captions, ids, seen, unread):
        self.asked.append(SimpleNamespace(noisy=noisy, captions=captions, ids=ids, seen=seen, unread=unread))
        return torch.zeros_like(noisy)


def lessons(*parts, **stage) -> Any:
    return BatchLoss(Stage(parts, 10, 1e-3, **stage), opened)


def test_every_step_learns_from_a_batch_of_each_part():
    model = Recorder()
    lessons(SizeGroup({SMALL: 9}, 3), SizeGroup({LARGE: 9}, 2)).loss(model, 0)
    assert [tuple(one.noisy.shape) for one in model.asked] == [(3, 4, 8, 8), (2, 4, 12, 12)]
    assert [one.ids[:, -2:].tolist() for one in model.asked] == [[[64, 64]] * 3, [[96, 96]] * 2]


def test_every_picture_counts_the_same():
    parts = SizeGroup({SMALL: 9}, 3), SizeGroup({LARGE: 9}, 1)
    own = lessons(*parts)
    rng = np.random.default_rng((10, 0))
    drawn = [(own._parts[part][int(rng.integers(1))], count) for part, count in ((0, 3), (1, 1))]
    losses = [own._batch_loss(Recorder(), rng, None, *shelved, count) for shelved, count in drawn]
    torch.testing.assert_close(lessons(*parts).loss(Recorder(), 0), (3 * losses[0] + losses[1]) / 4)


def test_references_are_looked_at_with_their_scenes():
    model, looked = Recorder(), []
    lessons(SizeGroup({SMALL: 9}, 3)).loss(model, 0, lambda scenes: looked.append(scenes) or "tokens")
    assert len(looked[0]) == 3
    assert model.asked[0].seen == "tokens"


def test_some_captions_are_not_read():
    for share in (0.0, 0.5, 1.0):
        model: Any = Recorder()
        lessons(SizeGroup({SMALL: 9}, 200), unread=share).loss(model, 0)
        assert float(model.asked[0].unread.float().mean()) == pytest.approx(
            share, abs=0.15 if share == 0.5 else 0
        )


def test_a_step_has_its_batches_whatever_came_before():
    one, other = lessons(SizeGroup({SMALL: 9}, 3)), lessons(SizeGroup({SMALL: 9}, 3))
    first = float(one.loss(Recorder(), 0))
    assert float(one.loss(Recorder(), 1)) == float(other.loss(Recorder(), 1)) != first


def test_processes_learn_from_other_scenes_of_the_same_sizes(monkeypatch):
    asked = []
    for number in (0, 1):
        monkeypatch.setattr("demo.batches.get_rank", lambda number=number: number)
        model, looked = Recorder(), []
        own = lessons(SizeGroup({SMALL: 9, LARGE: 9}, 6))
        for step in range(4):
            own.loss(model, step, looked.extend)
        asked.append(([one.noisy.shape for one in model.asked], looked))
    assert asked[0][0] == asked[1][0]
    assert asked[0][1] != asked[1][1]


def test_a_part_can_be_left_out_of_most_steps():
    model, own = Recorder(), lessons(SizeGroup({SMALL: 9}, 3), SizeGroup({LARGE: 9}, 2, every=3))
    for step in range(4):
        own.loss(model, step)
    assert [len(one.noisy) for one in model.asked] == [3, 2, 3, 3, 3, 2]


def test_scenes_of_some_words_are_learned_from_oftener():
    looked = []
    own = lessons(SizeGroup({SMALL: 200}, 500), oftener={"apple": 10.0})
    own.loss(Recorder(), 0, looked.extend)
    scenes = opened(SMALL, 200).scenes
    apples = [any(tag.endswith("apple") for tag in scene.subject_tags()) for scene in scenes]
    share = np.mean([any(tag.endswith("apple") for tag in scene.particulars()) for scene in looked])
    wanted = 10 * sum(apples) / (10 * sum(apples) + apples.count(False))
    assert 0 < np.mean(apples) < 0.1
    assert abs(share - wanted) < 0.07  # three standard deviations of 500


def test_quick_lessons_teach_nearly_the_same():
    """bfloat16 has 8 bits, so 0.4 % of error in what each layer puts out; they mostly cancel in a batch's loss."""
    model = draughtsman.load_model(DEMO)[0]
    losses = []
    for quick in (False, True):
        model.zero_grad()
        own = BatchLoss(Stage((SizeGroup({SMALL: 9}, 4),), 10, 1e-3), opened, in_bfloat16=quick)
        loss = own.compute(model.requires_grad_(True), 0)
        loss.backward()
        weight: Any = model.unet.conv_in.weight
        assert loss.dtype == weight.grad.dtype == torch.float32
        losses.append(loss.item())
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


def test_attention_is_in_float32_where_all_else_is_quick():
    states = torch.randn(1, 2, 8, 16, requires_grad=True)
    with autocast_bfloat16():
        assert (states @ states.mT).dtype == torch.bfloat16
        attended = scaled_dot_product_attention(states.bfloat16(), states.bfloat16(), states.bfloat16())
    assert attended.dtype == torch.float32
    rounded = states.bfloat16().float()
    torch.testing.assert_close(attended, scaled_dot_product_attention(rounded, rounded, rounded))
