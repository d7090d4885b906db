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

from demo.captions import write_caption
from demo.distributed import rank
from demo.latents import LatentCache
from demo.model import DemoModel
from demo.objective import Objective
from demo.scenes import Scene
from demo.text_encoders import COMMA, insert_unknown_tokens, split_captions
from pipelines.text.tokens import Chunk
from pipelines.types import Size

MAX_UNKNOWN_ID = 40_000
"""Ids below this are words and pieces of words."""
MAX_UNKNOWN_TOKENS = 60
"""How many tokens that mean nothing a caption may be sprinkled with."""
Values = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
EncodeReferences = Callable[[Sequence[Scene]], Tensor]
"""References to tokens (B, tokens, width)."""


@dataclass(frozen=True, slots=True)
class SizeGroup:
    """Pictures of about one area.

    Attributes:
        sizes: how many are drawn of each size.
        batch: how many a process learns from at a time.
        every: steps from one batch to the next; large pictures need not be in all.
    """

    scene_counts: Mapping[Size, int]
    batch_size: int
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

    size_groups: tuple[SizeGroup, ...]
    steps: int
    learning_rate: float
    high_noise_share: float = 0.0
    pooled_only_share: float = 0.0
    tag_weights: Mapping[str, float] = field(default_factory=dict[str, float])

    def list_sizes(self) -> list[Size]:
        """Every part's sizes."""
        return [size for part in self.size_groups for size in part.scene_counts]

    def scene_probabilities(self, scenes: Sequence[Scene]) -> Values:
        """How likely each of some scenes is to be learned from, in sum 1."""
        weights = np.array([self._weight(scene) for scene in scenes])
        return weights / weights.sum()

    def _weight(self, scene: Scene) -> float:
        words = {word for tag in scene.tags() for word in tag.split()}
        words |= set() if scene.degradation is None else {"spoilt"}
        return prod(times for word, times in self.tag_weights.items() if word in words)


@contextmanager
def autocast_bfloat16() -> Iterator[None]:
    """Compute in bfloat16, but attention in float32: its gradients take up to eight times as long in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16), _AttentionInFloat32():
        yield


class _AttentionInFloat32(TorchFunctionMode):
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
            return func(*map(_to_float32, args), **{name: _to_float32(one) for name, one in named.items()})


def _to_float32(given: object) -> object:
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
        load_cache: Callable[[Size, int], LatentCache],
        tag_rate: float = 0.92,
        in_bfloat16: bool = False,
    ) -> None:
        self._stage = stage
        shelves = [[load_cache(*sized) for sized in part.scene_counts.items()] for part in stage.size_groups]
        self._parts = [[(own, stage.scene_probabilities(own.scenes)) for own in part] for part in shelves]
        self._told, self._quick = tag_rate, in_bfloat16
        self._objective = Objective(stage.high_noise_share)

    def compute(
        self, model: DemoModel, step: int, encode_references: EncodeReferences | None = None
    ) -> Tensor:
        """The weighted error of the velocity in a step's batches, every picture counting the same.

        Args:
            look: makes image tokens of the batch's scenes, for an adapter.
        """
        rng = np.random.default_rng((self._stage.steps, step))
        batches = {
            k: part.batch_size for k, part in enumerate(self._stage.size_groups) if step % part.every == 0
        }
        drawn = [(self._parts[k][int(rng.integers(len(self._parts[k])))], batches[k]) for k in batches]
        if rank():
            # Of the same sizes, so that no process waits for another, but of other scenes.
            rng = np.random.default_rng((self._stage.steps, step, rank()))
        losses = [
            count * self._compute_batch(model, rng, encode_references, *shelved, count)
            for shelved, count in drawn
        ]
        return torch.stack(losses).sum() / sum(batches.values())

    def _compute_batch(
        self,
        model: DemoModel,
        rng: Generator,
        look: EncodeReferences | None,
        own: LatentCache,
        chances: Values,
        count: int,
    ) -> Tensor:
        chosen = [int(k) for k in rng.choice(len(chances), size=count, p=chances)]
        scenes = [own.scenes[k] for k in chosen]
        captions, seen = self._write_captions(scenes, rng), None if look is None else look(scenes)

        unread = torch.from_numpy(rng.random(count) < self._stage.pooled_only_share)

        def predict(noisy: Tensor, times: Tensor) -> Tensor:
            with autocast_bfloat16() if self._quick else nullcontext():
                return model(
                    own.append_inpaint_channels(noisy, chosen),
                    times,
                    captions,
                    own.select_size_ids(chosen),
                    seen,
                    unread,
                ).float()

        return self._objective.compute(predict, own.select_latents(chosen), rng)

    def _write_captions(self, scenes: Sequence[Scene], rng: Generator) -> list[tuple[Chunk, ...]]:
        said = [write_caption(scene, rng, self._told) for scene in scenes]
        return [
            _maybe_insert_unknown(parts, rng)
            for parts in split_captions(said, max_chunks=1 if rng.random() < 0.5 else 2)
        ]


def _maybe_insert_unknown(parts: tuple[Chunk, ...], rng: Generator) -> tuple[Chunk, ...]:
    if not parts[0].ids or rng.random() > 0.2:
        return parts
    unknown = rng.integers(1000, MAX_UNKNOWN_ID, int(MAX_UNKNOWN_TOKENS ** rng.random()))
    unknown[rng.integers(2, 4) :: 3] = COMMA
    return insert_unknown_tokens(parts, [int(token) for token in unknown], rng.random())
