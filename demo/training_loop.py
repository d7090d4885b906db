"""The training loop of all networks: warm-up and cosine decay, averaged weights, checkpoints to resume from."""

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

from demo.distributed import get_rank, share_gradients
from demo.muon import build_adamw

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Settings of a training.

    Attributes:
        checkpoint: Path of the checkpoint. If the file exists, training resumes from it.
        steps: Total number of steps, including those before resuming.
        learning_rate: Maximum learning rate. It rises over `warmup_steps` and falls to a twentieth on a cosine.
        average_steps: Time constant of the averaged weights, in steps.
        sample_every: Steps between two sample grids.
        save_every: Seconds between two checkpoints.
        build_optimizers: Makes the optimizers from a model and a learning rate.
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
        """Return the learning rate of a step."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        decay = 0.05 + 0.95 * (0.5 + 0.5 * cos(pi * min(1.0, step / self.steps)))
        return self.learning_rate * warmup * decay


def train(
    model: nn.Module,
    config: TrainConfig,
    compute_loss: Callable[[int], Tensor],
    save_samples: Callable[[nn.Module, int], None],
) -> nn.Module:
    """Train a model in place and return a copy with averaged weights.

    Args:
        compute_loss: Computes the loss of `model` on the batch of a step.
        save_samples: Called with the averaged model and the number of steps to write sample images.
    """
    optimizers = config.build_optimizers(model, config.learning_rate)
    average = copy.deepcopy(model).requires_grad_(False).eval()
    start, seconds = _resume(config.checkpoint, model, average, optimizers)
    began = saved = time.monotonic()
    steps = range(start, config.steps)
    bar = tqdm(steps, config.checkpoint.stem, config.steps, initial=start, mininterval=10)
    mean_loss = 0.0
    for step in bar:
        loss = compute_loss(step)
        _update_weights(model, loss, optimizers, config.learning_rate_at(step))
        _update_average(average, model, 1 / min(step + 1, config.average_steps))
        mean_loss += (float(loss.detach()) - mean_loss) / min(step - start + 1, 100)
        bar.set_postfix(loss=f"{mean_loss:.4f}", refresh=False)
        if get_rank() != 0:
            continue
        now, is_last = time.monotonic(), step + 1 == config.steps
        if is_last or now - saved >= config.save_every:
            saved = now
            _save_checkpoint(config.checkpoint, model, average, optimizers, step + 1, seconds + now - began)
        if is_last or (step + 1) % config.sample_every == 0:
            save_samples(average, step + 1)
    return average


def _update_weights(
    model: nn.Module, loss: Tensor, optimizers: list[torch.optim.Optimizer], learning_rate: float
) -> None:
    model.zero_grad(set_to_none=True)
    loss.backward()
    share_gradients(model)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()


@torch.no_grad()
def _update_average(average: nn.Module, model: nn.Module, share: float) -> None:
    for old, new in zip(average.parameters(), model.parameters(), strict=True):
        old.lerp_(new, share)
    for old, new in zip(average.buffers(), model.buffers(), strict=True):
        old.copy_(new)


def _save_checkpoint(
    file: Path,
    model: nn.Module,
    average: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    step: int,
    seconds: float,
) -> None:
    """Write a checkpoint with the number of steps and the seconds they took, replacing the file atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    checkpoint = {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": step,
        "seconds": seconds,
    }
    torch.save(checkpoint, new)
    new.replace(file)


def _resume(
    file: Path, model: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> tuple[int, float]:
    """Load a checkpoint if there is one and return its number of steps and seconds."""
    if not file.exists():
        return 0, 0.0
    checkpoint = torch.load(file, weights_only=True)
    model.load_state_dict(checkpoint["model"])
    average.load_state_dict(checkpoint["average"])
    for optimizer, state in zip(optimizers, checkpoint["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    return checkpoint["step"], checkpoint["seconds"]


def load_average(file: Path, model: Model) -> Model:
    """Load the averaged weights of a checkpoint into a model, for inference."""
    model.load_state_dict(torch.load(file, weights_only=True)["average"])
    return model.requires_grad_(False).eval()
