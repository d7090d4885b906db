from typing import Any

import pytest
import torch
from torch import nn

from demo.training_loop import TrainConfig, load_average, train


class Interrupted(Exception):
    pass


def lessons(model, until=None):
    """The same batch for the same step, whoever asks; interrupted before the step `until`."""

    def loss_of(step):
        if step == until:
            raise Interrupted
        batch = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return (model(batch) - batch.sum(dim=1, keepdim=True)).square().mean()

    return loss_of


def course(folder, **changes):
    return TrainConfig(
        folder / "line.pt",
        **({"steps": 40, "rate": 0.1, "warm_up": 5, "show_every": 10, "save_every": 0.0} | changes),
    )


def line():
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def test_a_training_that_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path):
    shown = []
    whole = line()
    average = train(whole, course(tmp_path / "a"), lessons(whole), lambda _, step: shown.append(step))
    assert shown == [10, 20, 30, 40]
    first, second = line(), line()
    with pytest.raises(Interrupted):
        train(first, course(tmp_path / "b"), lessons(first, 17), lambda _, step: None)
    resumed = train(second, course(tmp_path / "b"), lessons(second), lambda _, step: None)
    torch.testing.assert_close(dict(second.state_dict()), dict(whole.state_dict()))
    torch.testing.assert_close(dict(resumed.state_dict()), dict(average.state_dict()))
    alone = load_average(tmp_path / "b" / "line.pt", line())
    torch.testing.assert_close(dict(alone.state_dict()), dict(average.state_dict()))
    assert not any(weight.requires_grad for weight in alone.parameters())


def test_it_learns(tmp_path):
    model = line()
    average: Any = train(model, course(tmp_path, steps=150, memory=10), lessons(model), lambda _, step: None)
    assert (average.weight - 1).abs().max() < 0.1


def test_the_rate_rises_and_falls_to_a_twentieth(tmp_path):
    own = course(tmp_path, steps=1000, rate=1.0, warm_up=100)
    assert own.learning_rate_at(0) == pytest.approx(0.01)
    assert own.learning_rate_at(99) == pytest.approx(1.0, abs=0.03)
    assert own.learning_rate_at(1000) == pytest.approx(0.05)
    assert own.learning_rate_at(500) == pytest.approx(0.525)
