"""The loop that every training of the demo shares: warm-up and decay, averaged weights, checkpoints to go on from."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from demo.distributed import rank, share_gradients
from demo.muon import build_adamw

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How long and how fast a training goes.

    Attributes:
        file: where the checkpoint is; a training that finds one goes on from it.
        steps: how many there are in all, also after going on.
        rate: the highest learning rate; it rises over `warm_up` steps and falls to a twentieth on a cosine.
        memory: how many steps the averaged weights look back on.
        show_every: steps between two sample sheets.
        save_every: seconds between two checkpoints.
        optimizers: makes what moves the weights, of a model and a rate.
    """

    checkpoint: Path
    steps: int
    learning_rate: float
    warmup_steps: int = 100
    average_steps: float = 500.0
    sample_every: int = 500
    save_every: float = 120.0
    build_optimizers: Callable[[nn.Module, float], list[torch.optim.Optimizer]] = build_adamw

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        share = min(1.0, step / self.steps)
        return (
            self.learning_rate
            * min(1.0, (step + 1) / self.warmup_steps)
            * (0.05 + 0.95 * (0.5 + 0.5 * cos(pi * share)))
        )


def train(
    model: nn.Module,
    config: TrainConfig,
    compute_loss: Callable[[int], Tensor],
    save_samples: Callable[[nn.Module, int], None],
) -> nn.Module:
    """Train a model in place and return its average.

    Args:
        loss_of: the loss of a step's batch, computed with `model`.
        show: writes a sample sheet of the averaged model.
    """
    optimizers = config.build_optimizers(model, config.learning_rate)
    average = copy.deepcopy(model).requires_grad_(False).eval()
    start, spent = _resume(config.checkpoint, model, average, optimizers)
    began = saved = time.monotonic()
    bar = tqdm(
        range(start, config.steps),
        initial=start,
        total=config.steps,
        desc=config.checkpoint.stem,
        mininterval=10,
    )
    running = 0.0
    for step in bar:
        loss = compute_loss(step)
        model.zero_grad(set_to_none=True)
        loss.backward()
        share_gradients(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate_at(step)
            optimizer.step()
        _update_average(average, model, 1 / min(step + 1, config.average_steps))
        running += (float(loss.detach()) - running) / min(step - start + 1, 100)
        bar.set_postfix(loss=f"{running:.4f}", refresh=False)
        now, last = time.monotonic(), step + 1 == config.steps
        if rank() == 0 and (last or now - saved >= config.save_every):
            saved = now
            states: dict[str, object] = {"model": model.state_dict(), "average": average.state_dict()}
            states["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
            _save_checkpoint(config.checkpoint, states, step + 1, spent + now - began)
        if rank() == 0 and (last or (step + 1) % config.sample_every == 0):
            save_samples(average, step + 1)
    return average


@torch.no_grad()
def _update_average(average: nn.Module, model: nn.Module, share: float) -> None:
    for old, new in zip(average.parameters(), model.parameters(), strict=True):
        old.lerp_(new, share)
    for old, new in zip(average.buffers(), model.buffers(), strict=True):
        old.copy_(new)


def _save_checkpoint(file: Path, states: dict[str, object], step: int, seconds: float) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(".new")
    torch.save(states | {"step": step, "seconds": seconds}, fresh)
    fresh.replace(file)


def _resume(
    file: Path, model: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> tuple[int, float]:
    """The step and the seconds that a checkpoint has reached; nothing without one."""
    if not file.exists():
        return 0, 0.0
    found = torch.load(file, weights_only=True)
    model.load_state_dict(found["model"])
    average.load_state_dict(found["average"])
    for optimizer, state in zip(optimizers, found["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    return found["step"], found["seconds"]


def load_average(file: Path, model: Model) -> Model:
    """A model with the averaged weights of a training's checkpoint, for use alone."""
    model.load_state_dict(torch.load(file, weights_only=True)["average"])
    return model.requires_grad_(False).eval()
