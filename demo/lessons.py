"""Batches for the UNets: scenes of one size, captions, and what the network gets wrong in them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from demo.captions import caption
from demo.draughtsman import Draughtsman
from demo.language import COMMA, chunked, sprinkled
from demo.latents import Shelf
from demo.objective import Objective
from demo.scenes import Scene, Size
from pipelines.tokens import Chunk

COMMON_TOKENS = 40_000
"""Ids below this are words and pieces of words."""
MOST_UNKNOWN = 60
Look = Callable[[Sequence[Scene]], Tensor]
"""References to tokens (B, tokens, width)."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of a training.

    Attributes:
        sizes: how many pictures of each size are drawn.
        batch: of the smallest size.
        rate: the highest learning rate.
        composing: whether it dwells on what is decided in much noise, shapes above all.
    """

    sizes: Mapping[Size, int]
    batch: int
    steps: int
    rate: float
    composing: bool = False


class Lessons:
    """Batches of one stage, the same ones every time.

    Args:
        told: how much captions say of what is seen.
        composing: see Stage; every other picture is then one of shapes, which are a third of all.
    """

    def __init__(
        self, shelves: Sequence[Shelf], batch: int, seed: int, told: float = 0.92, composing: bool = False
    ) -> None:
        self._shelves, self._batch, self._told = shelves, batch, told
        self._rng = np.random.default_rng(seed)
        self._objective = Objective(composing)
        self._composing = composing

    def loss(self, model: Draughtsman, look: Look | None = None) -> Tensor:
        """The weighted error of the velocity in the next batch.

        Args:
            look: makes image tokens of the batch's scenes, for an adapter.
        """
        rng = self._rng
        own = self._shelves[int(rng.integers(len(self._shelves)))]
        count = max(1, round(self._batch * self._relief(own)))
        chosen = self._chosen(own, count)
        scenes = [own.scenes[k] for k in chosen]
        captions, seen = self._captions(scenes), None if look is None else look(scenes)

        def predict(noisy: Tensor, times: Tensor) -> Tensor:
            return model(own.beside(noisy, chosen), times, captions, own.ids(chosen), seen)

        return self._objective.loss(predict, own.clean(chosen), rng)

    def _chosen(self, own: Shelf, count: int) -> list[int]:
        """Which of a shelf's pictures make a batch."""
        everything = range(len(own.scenes))
        shapes = [k for k in everything if not own.scenes[k].characters]
        halves = (shapes, everything) if self._composing and shapes else (everything,)
        return [int(self._rng.choice(halves[k % len(halves)])) for k in range(count)]

    def _relief(self, own: Shelf) -> float:
        """A larger picture comes in a smaller batch: the share of the smallest size's."""
        areas = [other.size[0] * other.size[1] for other in self._shelves]
        return min(areas) / (own.size[0] * own.size[1])

    def _captions(self, scenes: Sequence[Scene]) -> list[tuple[Chunk, ...]]:
        said = [caption(scene, self._rng, self._told) for scene in scenes]
        return [self._sprinkled(parts) for parts in chunked(said, most=1 if self._rng.random() < 0.5 else 2)]

    def _sprinkled(self, parts: tuple[Chunk, ...]) -> tuple[Chunk, ...]:
        rng = self._rng
        if not parts[0].ids or rng.random() > 0.2:
            return parts
        unknown = rng.integers(1000, COMMON_TOKENS, int(MOST_UNKNOWN ** rng.random()))
        unknown[rng.integers(2, 4) :: 3] = COMMA
        return sprinkled(parts, [int(token) for token in unknown], rng.random())
