"""What a UNet computes of the rows' conditionings: once for all steps and images that use them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pipelines.adapters.attention import ImageKeys, group_images
from pipelines.sampling.denoise import Row
from pipelines.sampling.prediction import NoiseTable
from pipelines.text.encoding import Conditioning
from pipelines.unet.attention import Context
from pipelines.weights.networks import UNet


@dataclass(slots=True, eq=False)
class PreparedPrompt:
    """What a UNet computed of a conditioning.

    Attributes:
        keys_values: of the prompt, (tokens, width); a part of the last context that has it: memory has them once.
        images: those of its reference images.
        embeddings: of timesteps, (T, width), by the size ids and the first of the timesteps.
    """

    keys_values: Tensor
    images: tuple[ImageKeys, ...]
    embeddings: dict[object, Tensor] = field(default_factory=dict[object, Tensor])


class PreparedPrompts:
    """Computes the parts of a UNet's input that depend on conditionings, and keeps them as long as these exist.

    LoRAs must not change while a conditioning is used: each job has its own.
    """

    def __init__(self, unet: UNet, table: NoiseTable, device: torch.device) -> None:
        self._unet, self._table, self._device = unet, table, device
        self._prompts = WeakKeyDictionary[Conditioning, PreparedPrompt]()
        self._last: tuple[list[PreparedPrompt], Context] | None = None

    def clear(self) -> None:
        """Free what can be computed again."""
        self._prompts.clear()
        self._last = None

    def stack_embeddings(self, rows: Sequence[Row]) -> Tensor:
        """Return the embeddings of the rows' sigmas, size ids and pooled prompts, (B, width)."""
        return torch.stack([self._embed(row) for row in rows])

    def stack_contexts(self, rows: Sequence[Row]) -> Context:
        """Return what the rows attend to; for the same conditionings as the last time, the same object."""
        prompts = [self._prepare(row.conditioning) for row in rows]
        if self._last is not None and _are_same(self._last[0], prompts):
            return self._last[1]
        self._last = None  # freed before the next one is made
        keys_values = torch.stack([prompt.keys_values for prompt in prompts])
        context = Context(keys_values, group_images([prompt.images for prompt in prompts]))
        for prompt, part in zip(prompts, keys_values, strict=True):
            prompt.keys_values = part
        self._last = prompts, context
        return context

    def _prepare(self, conditioning: Conditioning) -> PreparedPrompt:
        prompt = self._prompts.get(conditioning)
        if prompt is None:
            images = tuple(self._unet.project_image(vibe) for vibe in conditioning.vibes)
            prompt = PreparedPrompt(self._unet.project(conditioning.context), images)
            self._prompts[conditioning] = prompt
        return prompt

    def _embed(self, row: Row) -> Tensor:
        """Return a row's embedding (width,), from one table for all timesteps of a discrete noise table."""
        known = self._prepare(row.conditioning).embeddings
        timestep = self._table.timestep(row.sigma)
        first, count = (timestep, 1) if self._table.is_continuous else (0, len(self._table.sigmas))
        key = row.time_ids, first
        if key not in known:
            timesteps = torch.arange(count, device=self._device) + first
            ids = None if row.time_ids is None else make_vector(row.time_ids, self._device)
            known[key] = self._unet.embed(timesteps, row.conditioning.pooled, ids)
        return known[key][int(timestep - first)]


def make_vector(numbers: Sequence[float], device: torch.device) -> Tensor:
    """Return numbers as a float32 vector that the device fills in: a copy would wait for all work before it."""
    return torch.stack([torch.full((), number, dtype=torch.float32, device=device) for number in numbers])


def _are_same(first: Sequence[PreparedPrompt], second: Sequence[PreparedPrompt]) -> bool:
    return len(first) == len(second) and all(a is b for a, b in zip(first, second, strict=True))
