"""Prompts as the network reads them: encoded chunk by chunk, weighted, and mixed.

Every chunk of 77 tokens is encoded alone and remembered under (encoder, ids), so that a prompt gives the same
numbers whatever it is encoded beside. A weight moves a token's embedding along the line from the empty prompt's
at the same position; the pooled vector is the first chunk's and never weighted. `|` blends both.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.job import Prompts
from pipelines.text.prompt import Segment, mix_weights, parse
from pipelines.text.tokens import EMPTY, Chunk, split_chunks
from pipelines.weights.networks import TextEncoder

REMEMBERED = 128


@dataclass(frozen=True, slots=True)
class Conditioning:
    """`context` is (77 * chunks, width) and `pooled` (width,), both float32 on the device."""

    context: Tensor
    pooled: Tensor | None


@dataclass(frozen=True, slots=True)
class PromptEmbeddings:
    """The three conditionings of a job, all of the same length."""

    positive: Conditioning
    negative: Conditioning
    empty: Conditioning


class PromptEncoder:
    """The text encoders of a model, side by side, and what they have encoded lately."""

    def __init__(self, towers: Sequence[TextEncoder], device: torch.device) -> None:
        self._towers = tuple(towers)
        self._device = device
        self._known: OrderedDict[tuple[int, tuple[int, ...]], tuple[Tensor, Tensor | None]] = OrderedDict()

    def encode(self, prompts: Prompts) -> PromptEmbeddings:
        """Encode a job's prompts.

        Raises:
            InvalidPrompt: every part of a `|` mix has weight 0.
        """
        sides = [
            [
                (segment, split_chunks(segment.runs, prompts.drop_seam_tokens))
                for segment in parse(text, prompts.syntax)
            ]
            for text in (prompts.positive, prompts.negative, "")
        ]
        length = max(len(parts) for side in sides for _, parts in side)
        return PromptEmbeddings(*(self._mix(side, length) for side in sides))

    def _mix(self, side: Sequence[tuple[Segment, tuple[Chunk, ...]]], length: int) -> Conditioning:
        if len(side) == 1:
            return self._encode(side[0][1], length)
        return blend_conditionings(
            [
                (share, self._encode(parts, length))
                for share, (_, parts) in zip(mix_weights([segment for segment, _ in side]), side, strict=True)
                if share
            ]
        )

    def _encode(self, parts: Sequence[Chunk], length: int) -> Conditioning:
        padded = [*parts, *(EMPTY for _ in range(length - len(parts)))]
        context = torch.cat([self._chunk(chunk) for chunk in padded])
        pooled = [self._tower(k, parts[0])[1] for k in range(len(self._towers))]
        return Conditioning(context, next((vector for vector in pooled if vector is not None), None))

    def _chunk(self, chunk: Chunk) -> Tensor:
        """One chunk's weighted embedding, the encoders' features side by side: (77, width)."""
        weights = torch.tensor(chunk.padded_weights(), device=self._device)[:, None]
        sides: list[Tensor] = []
        for k in range(len(self._towers)):
            hidden, nothing = self._tower(k, chunk)[0], self._tower(k, EMPTY)[0]
            sides.append(torch.lerp(nothing, hidden, weights))
        return torch.cat(sides, dim=-1)

    def _tower(self, k: int, chunk: Chunk) -> tuple[Tensor, Tensor | None]:
        """What encoder k makes of a chunk, unweighted: hidden states (77, width) and pooled (width,)."""
        ids = chunk.padded(self._towers[k].pad)
        if (k, ids) not in self._known:
            hidden, pooled = self._towers[k].encode(torch.tensor([ids], device=self._device))
            self._known[k, ids] = hidden[0].float(), None if pooled is None else pooled[0].float()
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end((k, ids))
        return self._known[k, ids]


def blend_conditionings(parts: Sequence[tuple[float, Conditioning]]) -> Conditioning:
    """A weighted sum of conditionings of equal length."""

    def total(pick: Callable[[Conditioning], Tensor | None]) -> Tensor | None:
        picked = [share * tensor for share, part in parts if (tensor := pick(part)) is not None]
        return torch.stack(picked).sum(0) if picked else None

    context = total(lambda part: part.context)
    assert context is not None
    return Conditioning(context, total(lambda part: part.pooled))
