"""Batches for training the UNets: which scenes they have, with which captions, and the loss of a model on them."""

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
from demo.distributed import get_rank
from demo.latents import LatentCache
from demo.model import DemoModel
from demo.objective import Objective
from demo.scenes import Scene
from demo.text_encoders import COMMA, insert_unknown_tokens, split_captions
from pipelines.text.tokens import Chunk
from pipelines.types import Size

UNKNOWN_IDS = (1000, 40_000)
"""Range of the token ids inserted as unknown words. Those below 40,000 are words and parts of words."""
MAX_UNKNOWN_TOKENS = 60
"""Maximum number of unknown tokens inserted into a caption."""
Probabilities = np.ndarray[tuple[int], np.dtype[np.float64]]
EncodeReferences = Callable[[Sequence[Scene]], Tensor]
"""Makes an image adapter's tokens (B, tokens, width) from references of the scenes."""


@dataclass(frozen=True, slots=True)
class SizeGroup:
    """Image sizes of about the same area.

    Attributes:
        scene_counts: Number of scenes of each size.
        batch_size: Images in a batch of one process.
        every: Steps from one batch to the next. Large images need not be in every step.
    """

    scene_counts: Mapping[Size, int]
    batch_size: int
    every: int = 1


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a training.

    Attributes:
        size_groups: A step has one batch of each. With large images alone, batches are small and steps noisy.
        steps: Number of steps.
        learning_rate: The highest learning rate.
        high_noise_share: Share of samples with much noise, see `Objective`.
        pooled_only_share: Share of captions that reach the UNet through the pooled vector only.
        tag_weights: Factors on how often a scene is chosen, by words of its tags or "degraded". The factors of several
            words are multiplied.
    """

    size_groups: tuple[SizeGroup, ...]
    steps: int
    learning_rate: float
    high_noise_share: float = 0.0
    pooled_only_share: float = 0.0
    tag_weights: Mapping[str, float] = field(default_factory=dict[str, float])

    def list_sizes(self) -> list[Size]:
        """Return the sizes of all groups."""
        return [size for group in self.size_groups for size in group.scene_counts]

    def scene_probabilities(self, scenes: Sequence[Scene]) -> Probabilities:
        """Return the probability of each scene to be chosen; they add up to 1."""
        weights = np.array([self._weight(scene) for scene in scenes])
        return weights / weights.sum()

    def _weight(self, scene: Scene) -> float:
        words = {word for tag in scene.tags() for word in tag.split()}
        words |= set() if scene.degradation is None else {"degraded"}
        return prod(factor for word, factor in self.tag_weights.items() if word in words)


@contextmanager
def autocast_bfloat16() -> Iterator[None]:
    """Compute in bfloat16, except attention: its gradients take up to eight times as long as in float32."""
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
        keywords = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **keywords)
        with torch.autocast("cpu", enabled=False):
            return func(
                *map(_to_float32, args), **{name: _to_float32(value) for name, value in keywords.items()}
            )


def _to_float32(value: object) -> object:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


class BatchLoss:
    """The loss of a model on the batches of one stage.

    A step has the same batches every time, also when a training resumes from a checkpoint.

    Args:
        load_cache: Returns the cache of a size with a number of scenes.
        tag_rate: Share of the tags that captions keep.
        in_bfloat16: Compute in bfloat16. With hardware support a step takes 60 % of the time, without it longer.
    """

    def __init__(
        self,
        stage: Stage,
        load_cache: Callable[[Size, int], LatentCache],
        tag_rate: float = 0.92,
        in_bfloat16: bool = False,
    ) -> None:
        self._stage = stage
        groups = [[load_cache(*item) for item in group.scene_counts.items()] for group in stage.size_groups]
        self._caches = [
            [(cache, stage.scene_probabilities(cache.scenes)) for cache in caches] for caches in groups
        ]
        self._tag_rate, self._in_bfloat16 = tag_rate, in_bfloat16
        self._objective = Objective(stage.high_noise_share)

    def compute(
        self, model: DemoModel, step: int, encode_references: EncodeReferences | None = None
    ) -> Tensor:
        """Return the weighted velocity error over a step's batches. Every image counts the same.

        Args:
            encode_references: For an adapter, makes the image tokens of a batch's scenes.
        """
        rng = np.random.default_rng((self._stage.steps, step))
        groups = [
            (group.batch_size, caches)
            for group, caches in zip(self._stage.size_groups, self._caches, strict=True)
            if step % group.every == 0
        ]
        batches = [(count, caches[int(rng.integers(len(caches)))]) for count, caches in groups]
        if get_rank():
            # the same sizes in all processes, so that none waits for another, but different scenes
            rng = np.random.default_rng((self._stage.steps, step, get_rank()))
        losses = [
            count * self._compute_batch(model, rng, encode_references, *cache, count)
            for count, cache in batches
        ]
        return torch.stack(losses).sum() / sum(count for count, _ in batches)

    def _compute_batch(
        self,
        model: DemoModel,
        rng: Generator,
        encode_references: EncodeReferences | None,
        cache: LatentCache,
        probabilities: Probabilities,
        count: int,
    ) -> Tensor:
        chosen = [int(k) for k in rng.choice(len(probabilities), size=count, p=probabilities)]
        scenes = [cache.scenes[k] for k in chosen]
        captions = self._write_captions(scenes, rng)
        image_tokens = None if encode_references is None else encode_references(scenes)
        pooled_only = torch.from_numpy(rng.random(count) < self._stage.pooled_only_share)

        def predict(noisy: Tensor, times: Tensor) -> Tensor:
            channels, ids = cache.append_inpaint_channels(noisy, chosen), cache.select_size_ids(chosen)
            with autocast_bfloat16() if self._in_bfloat16 else nullcontext():
                return model(channels, times, captions, ids, image_tokens, pooled_only).float()

        return self._objective.compute(predict, cache.select_latents(chosen), rng)

    def _write_captions(self, scenes: Sequence[Scene], rng: Generator) -> list[tuple[Chunk, ...]]:
        captions = [write_caption(scene, rng, self._tag_rate) for scene in scenes]
        batch = split_captions(captions, max_chunks=1 if rng.random() < 0.5 else 2)
        return [_add_unknown_tokens(chunks, rng) for chunks in batch]


def _add_unknown_tokens(chunks: tuple[Chunk, ...], rng: Generator) -> tuple[Chunk, ...]:
    """Insert random unknown tokens into one in five captions."""
    if not chunks[0].ids or rng.random() > 0.2:
        return chunks
    unknown = rng.integers(*UNKNOWN_IDS, int(MAX_UNKNOWN_TOKENS ** rng.random()))
    unknown[rng.integers(2, 4) :: 3] = COMMA
    return insert_unknown_tokens(chunks, [int(token) for token in unknown], rng.random())
