"""Batches for the UNets: scenes of one size, captions, and what the network gets wrong in them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from demo.captions import caption
from demo.distributed import rank
from demo.latents import LatentCache
from demo.model import DemoModel
from demo.objective import Objective
from demo.scenes import Scene
from demo.text_encoders import COMMA, chunked, sprinkled
from pipelines.text.tokens import Chunk
from pipelines.types import Size

COMMON_TOKENS = 40_000
"""Ids below this are words and pieces of words."""
MOST_UNKNOWN = 60
"""How many tokens that mean nothing a caption may be sprinkled with."""
Values = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Look = Callable[[Sequence[Scene]], Tensor]
"""References to tokens (B, tokens, width)."""


@dataclass(frozen=True, slots=True)
class Part:
    """Pictures of about one area.

    Attributes:
        sizes: how many are drawn of each size.
        batch: how many a process learns from at a time.
        every: steps from one batch to the next; large pictures need not be in all.
    """

    sizes: Mapping[Size, int]
    batch: int
    every: int = 1


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of a training.

    Attributes:
        parts: a step learns from one batch of each; where all are large the batches are small and the steps noisy.
        rate: the highest learning rate.
        dwelling: how much it dwells on what is decided in much noise, see Objective.
        unread: the share of the captions that are told by the pooled vector alone.
        oftener: words of tags or "spoilt", and how many times as often as others the scenes are learned from that have
            them; for several words the product.
    """

    parts: tuple[Part, ...]
    steps: int
    rate: float
    dwelling: float = 0.0
    unread: float = 0.0
    oftener: Mapping[str, float] = field(default_factory=dict[str, float])

    def sizes(self) -> list[Size]:
        """Every part's sizes."""
        return [size for part in self.parts for size in part.sizes]

    def chances(self, scenes: Sequence[Scene]) -> Values:
        """How likely each of some scenes is to be learned from, in sum 1."""
        weights = np.array([self._weight(scene) for scene in scenes])
        return weights / weights.sum()

    def _weight(self, scene: Scene) -> float:
        words = {word for tag in scene.tags() for word in tag.split()}
        words |= set() if scene.spoilt is None else {"spoilt"}
        return prod(times for word, times in self.oftener.items() if word in words)


@contextmanager
def quickly() -> Iterator[None]:
    """Compute in bfloat16, but attention in float32: its gradients take up to eight times as long in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16), _Attention():
        yield


class _Attention(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        named = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **named)
        with torch.autocast("cpu", enabled=False):
            return func(*map(_widened, args), **{name: _widened(one) for name, one in named.items()})


def _widened(given: object) -> object:
    return given.float() if isinstance(given, Tensor) and given.is_floating_point() else given


class BatchLoss:
    """Batches of one stage: a step has the same ones every time, also when a training goes on from a checkpoint.

    Args:
        opened: gives the shelf of a size with so many scenes.
        told: how much captions say of what is seen.
        quick: compute in bfloat16. Where a processor has it a step takes six tenths of the time; elsewhere longer.
    """

    def __init__(
        self,
        stage: Stage,
        opened: Callable[[Size, int], LatentCache],
        told: float = 0.92,
        quick: bool = False,
    ) -> None:
        self._stage = stage
        shelves = [[opened(*sized) for sized in part.sizes.items()] for part in stage.parts]
        self._parts = [[(own, stage.chances(own.scenes)) for own in part] for part in shelves]
        self._told, self._quick = told, quick
        self._objective = Objective(stage.dwelling)

    def loss(self, model: DemoModel, step: int, look: Look | None = None) -> Tensor:
        """The weighted error of the velocity in a step's batches, every picture counting the same.

        Args:
            look: makes image tokens of the batch's scenes, for an adapter.
        """
        rng = np.random.default_rng((self._stage.steps, step))
        batches = {k: part.batch for k, part in enumerate(self._stage.parts) if step % part.every == 0}
        drawn = [(self._parts[k][int(rng.integers(len(self._parts[k])))], batches[k]) for k in batches]
        if rank():
            # Of the same sizes, so that no process waits for another, but of other scenes.
            rng = np.random.default_rng((self._stage.steps, step, rank()))
        losses = [count * self._batch_loss(model, rng, look, *shelved, count) for shelved, count in drawn]
        return torch.stack(losses).sum() / sum(batches.values())

    def _batch_loss(
        self,
        model: DemoModel,
        rng: Generator,
        look: Look | None,
        own: LatentCache,
        chances: Values,
        count: int,
    ) -> Tensor:
        chosen = [int(k) for k in rng.choice(len(chances), size=count, p=chances)]
        scenes = [own.scenes[k] for k in chosen]
        captions, seen = self._captions(scenes, rng), None if look is None else look(scenes)

        unread = torch.from_numpy(rng.random(count) < self._stage.unread)

        def predict(noisy: Tensor, times: Tensor) -> Tensor:
            with quickly() if self._quick else nullcontext():
                return model(
                    own.beside(noisy, chosen), times, captions, own.ids(chosen), seen, unread
                ).float()

        return self._objective.loss(predict, own.clean(chosen), rng)

    def _captions(self, scenes: Sequence[Scene], rng: Generator) -> list[tuple[Chunk, ...]]:
        said = [caption(scene, rng, self._told) for scene in scenes]
        return [_sprinkled(parts, rng) for parts in chunked(said, most=1 if rng.random() < 0.5 else 2)]


def _sprinkled(parts: tuple[Chunk, ...], rng: Generator) -> tuple[Chunk, ...]:
    if not parts[0].ids or rng.random() > 0.2:
        return parts
    unknown = rng.integers(1000, COMMON_TOKENS, int(MOST_UNKNOWN ** rng.random()))
    unknown[rng.integers(2, 4) :: 3] = COMMA
    return sprinkled(parts, [int(token) for token in unknown], rng.random())
