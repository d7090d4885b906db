"""Prompt embeddings: chunks of tokens encoded one by one, weighted and mixed.

Every chunk of 77 tokens is encoded alone and cached under (adapters, encoder, ids), so its numbers do not depend on
what is encoded together with it. A weight interpolates or extrapolates a token's embedding from the empty prompt's
embedding at the same position. The pooled vector is the first chunk's and is not weighted. `|` blends both.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from pipelines.adapters.attention import RowVibes
from pipelines.job import Prompts
from pipelines.text.inversion_vectors import InversionVectors
from pipelines.text.prompt import list_prompt_pairs, mix_weights, parse
from pipelines.text.runs import Segment
from pipelines.text.tokens import EMPTY, EOS, Chunk, split_chunks
from pipelines.weights.networks import TextEncoder

PLACEHOLDER = 0
"""Id of a token whose embedding is replaced; not the end of the text, where the pooled vector is read."""
CACHE_SIZE = 128
"""Number of chunks kept; a chunk counts once for each text encoder."""

_Segments = Sequence[tuple[Segment, tuple[Chunk, ...]]]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Conditioning:
    """One encoded prompt, float32 on the device, and the images that its rows attend to.

    It is equal to itself alone, so that what networks compute of it can be kept by it.
    """

    context: Tensor  # (77 * chunks, width)
    pooled: Tensor | None  # (width,), or None for models without it
    vibes: RowVibes = ()


@dataclass(frozen=True, slots=True)
class CharacterEmbeddings:
    """The conditionings in the region of a character; `negative` is None if it is the base prompt's."""

    positive: Conditioning
    negative: Conditioning | None
    center: tuple[float, float]

    def with_vibes(self, cond: RowVibes, uncond: RowVibes) -> "CharacterEmbeddings":
        """Return the same with images; see `PromptEmbeddings.with_vibes`."""
        negative = None if self.negative is None else replace(self.negative, vibes=uncond)
        return CharacterEmbeddings(replace(self.positive, vibes=cond), negative, self.center)


@dataclass(frozen=True, slots=True)
class PromptEmbeddings:
    """The conditionings of a job, all with the same number of chunks."""

    positive: Conditioning
    negative: Conditioning
    empty: Conditioning
    characters: tuple[CharacterEmbeddings, ...] = ()

    def with_vibes(self, cond: RowVibes, uncond: RowVibes) -> "PromptEmbeddings":
        """Return the same with images: `cond` for the prompt, `uncond` for what is guided away from."""
        characters = tuple(character.with_vibes(cond, uncond) for character in self.characters)
        negative, empty = replace(self.negative, vibes=uncond), replace(self.empty, vibes=uncond)
        return PromptEmbeddings(replace(self.positive, vibes=cond), negative, empty, characters)


class PromptEncoder:
    """Encodes prompts with all text encoders of a model and caches the encoded chunks.

    Attributes:
        adapters: identifies the LoRAs that are applied to the text encoders; a part of the cache's keys.
    """

    def __init__(self, text_encoders: Sequence[TextEncoder], device: torch.device) -> None:
        self._text_encoders = tuple(text_encoders)
        self._device = device
        self._inversions = InversionVectors([encoder.width for encoder in text_encoders])
        self.adapters: Hashable = ()
        self._cache: OrderedDict[tuple[Hashable, ...], tuple[Tensor, Tensor | None]] = OrderedDict()

    def clear(self) -> None:
        """Free the cache."""
        self._cache.clear()

    def encode(self, prompts: Prompts) -> PromptEmbeddings:
        """Encode a job's prompts; raise InvalidPrompt for a `|` mix of weight 0."""
        words = self._inversions.name_ids(prompts.inversions)

        def split(segments: Sequence[Segment]) -> _Segments:
            return [
                (segment, split_chunks(segment.runs, prompts.drop_seam_tokens, words)) for segment in segments
            ]

        def mix(segments: _Segments) -> Conditioning:
            return self._mix_segments(segments, length)

        pairs = [(split(positive), split(negative)) for positive, negative in list_prompt_pairs(prompts)]
        empty = split(parse(""))
        length = max(len(chunks) for segments in (empty, *chain(*pairs)) for _, chunks in segments)
        (positive, negative), *others = pairs
        characters = (
            CharacterEmbeddings(
                mix(own), None if undesired == negative else mix(undesired), (place.x, place.y)
            )
            for (own, undesired), place in zip(others, prompts.characters, strict=True)
        )
        return PromptEmbeddings(mix(positive), mix(negative), mix(empty), tuple(characters))

    def _mix_segments(self, segments: _Segments, length: int) -> Conditioning:
        """Encode a prompt's segments, each as `length` chunks, and blend them by their shares."""
        if len(segments) == 1:
            return self._encode_chunks(segments[0][1], length)
        shares = mix_weights([segment for segment, _ in segments])
        pairs = zip(shares, segments, strict=True)
        parts = [(share, self._encode_chunks(chunks, length)) for share, (_, chunks) in pairs if share]
        return blend_conditionings(parts)

    def _encode_chunks(self, chunks: Sequence[Chunk], length: int) -> Conditioning:
        """Encode chunks, filled with empty ones to `length`."""
        filled = [*chunks, *(EMPTY for _ in range(length - len(chunks)))]
        context = torch.cat([self._embed_chunk(chunk) for chunk in filled])
        pooled = [self._run_text_encoder(k, chunks[0])[1] for k in range(len(self._text_encoders))]
        return Conditioning(context, next((vector for vector in pooled if vector is not None), None))

    def _embed_chunk(self, chunk: Chunk) -> Tensor:
        """Return a chunk's weighted embedding, all encoders' features concatenated: (77, width)."""
        weights = torch.tensor(chunk.pad_weights(), device=self._device)[:, None]
        features: list[Tensor] = []
        for k in range(len(self._text_encoders)):
            hidden, empty = self._run_text_encoder(k, chunk)[0], self._run_text_encoder(k, EMPTY)[0]
            features.append(torch.lerp(empty, hidden, weights))
        return torch.cat(features, dim=-1)

    def _run_text_encoder(self, k: int, chunk: Chunk) -> tuple[Tensor, Tensor | None]:
        """Return encoder k's output for a chunk, unweighted: hidden states (77, width) and pooled (width,)."""
        ids = chunk.pad_ids(self._text_encoders[k].pad)
        key = (self.adapters, k, ids)
        if key not in self._cache:
            hidden, pooled = self._encode_ids(k, ids)
            self._cache[key] = hidden[0].float(), None if pooled is None else pooled[0].float()
            if len(self._cache) > CACHE_SIZE:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    def _encode_ids(self, k: int, ids: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        vectors = self._inversions.find_vectors(k, ids)
        tokens = torch.tensor([[PLACEHOLDER if id_ > EOS else id_ for id_ in ids]], device=self._device)
        encode = self._text_encoders[k].encode
        return encode(tokens, vectors) if vectors else encode(tokens)


def blend_conditionings(parts: Sequence[tuple[float, Conditioning]]) -> Conditioning:
    """Return the weighted sum of conditionings of equal length."""

    def blend(pick: Callable[[Conditioning], Tensor | None]) -> Tensor | None:
        weighted = [share * tensor for share, part in parts if (tensor := pick(part)) is not None]
        return torch.stack(weighted).sum(0) if weighted else None

    context = blend(lambda part: part.context)
    assert context is not None
    return Conditioning(context, blend(lambda part: part.pooled))
