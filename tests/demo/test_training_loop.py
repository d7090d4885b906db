from typing import Any

import pytest
import torch
from torch import nn

from demo.training_loop import TrainConfig, load_average, train


class Interrupted(Exception):
    pass


def build_loss(model, interrupt_at=None):
    """Return a loss with a fixed batch for each step, which raises before the step `interrupt_at`."""

    def compute_loss(step):
        if step == interrupt_at:
            raise Interrupted
        batch = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return (model(batch) - batch.sum(dim=1, keepdim=True)).square().mean()

    return compute_loss


def build_config(folder, **changes):
    defaults = {"steps": 40, "learning_rate": 0.1, "warmup_steps": 5, "sample_every": 10, "save_every": 0.0}
    return TrainConfig(folder / "linear.pt", **(defaults | changes))


def build_model():
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def save_no_samples(average, step):
    pass


def test_an_interrupted_training_resumes_with_the_same_result(tmp_path):
    sampled = []
    uninterrupted = build_model()
    average = train(
        uninterrupted,
        build_config(tmp_path / "a"),
        build_loss(uninterrupted),
        lambda _, step: sampled.append(step),
    )
    assert sampled == [10, 20, 30, 40]
    first, second = build_model(), build_model()
    with pytest.raises(Interrupted):
        train(first, build_config(tmp_path / "b"), build_loss(first, 17), save_no_samples)
    resumed = train(second, build_config(tmp_path / "b"), build_loss(second), save_no_samples)
    torch.testing.assert_close(dict(second.state_dict()), dict(uninterrupted.state_dict()))
    torch.testing.assert_close(dict(resumed.state_dict()), dict(average.state_dict()))
    loaded = load_average(tmp_path / "b" / "linear.pt", build_model())
    torch.testing.assert_close(dict(loaded.state_dict()), dict(average.state_dict()))
    assert not any(weight.requires_grad for weight in loaded.parameters())


def test_training_approaches_the_solution(tmp_path):
    model = build_model()
    config = build_config(tmp_path, steps=150, average_steps=10)
    average: Any = train(model, config, build_loss(model), save_no_samples)
    assert (average.weight - 1).abs().max() < 0.1


def test_the_learning_rate_rises_and_falls_to_a_twentieth(tmp_path):
    config = build_config(tmp_path, steps=1000, learning_rate=1.0, warmup_steps=100)
    assert config.learning_rate_at(0) == pytest.approx(0.01)
    assert config.learning_rate_at(99) == pytest.approx(1.0, abs=0.03)
    assert config.learning_rate_at(1000) == pytest.approx(0.05)
    assert config.learning_rate_at(500) == pytest.approx(0.525)
