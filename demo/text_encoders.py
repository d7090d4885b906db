"""The demo's text encoders, trained over a vocabulary reduced to the tokens of its captions.

All other tokens share one embedding. Training inserts such unknown tokens into captions, so that the networks learn to
ignore words without a meaning here. A model file has the full vocabulary, with the shared embedding in all their rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from demo.architecture import demo_architecture
from demo.captions import BAD_TAGS, GOOD_TAGS, NEUTRAL_TAGS
from demo.palette import EYES, HAIR, PLAIN
from demo.scenes import STYLES
from demo.shapes import KINDS
from pipelines.text.prompt import parse
from pipelines.text.tokens import BOS, CHUNK, EMPTY, EOS, Chunk, split_chunks, tokenize

VOCABULARY_SIZE, COMMA = 49408, 267
PHRASES = (
    *(*PLAIN, *HAIR, *EYES, *STYLES, *GOOD_TAGS, *BAD_TAGS, *NEUTRAL_TAGS),
    *(f"{kind}, {kind}s" for kind in KINDS),
    "1girl, 1boy, 2girls, 2boys, solo, no humans, 1, 2, 3, hair, eyes, shirt, bow, dark skin, background",
    "long hair, short hair, twintails, ponytail, smile, open mouth, frown, expressionless, closed eyes",
    "hat, glasses, blush, upper body, full body, chibi, gradient background, on the left right, at the top bottom",
)


def list_caption_tokens() -> tuple[int, ...]:
    """Return the sorted token ids that captions consist of, with begin, end and both kinds of padding."""
    tokens = {token for phrase in PHRASES for token in tokenize(phrase)}
    return tuple(sorted(tokens | {0, BOS, EOS}))


class TextEncoders(nn.Module):
    """Both text encoders over the reduced vocabulary. `token_map` maps token ids to reduced ids; 0 is unknown."""

    token_map: Tensor

    def __init__(self) -> None:
        super().__init__()
        tokens = list_caption_tokens()
        token_map = torch.zeros(VOCABULARY_SIZE, dtype=torch.long)
        token_map[list(tokens)] = torch.arange(1, len(tokens) + 1)
        self.register_buffer("token_map", token_map, persistent=False)
        self.pads = tuple(tower.pad for tower in demo_architecture().text_encoders)
        classes = (CLIPTextModel, CLIPTextModelWithProjection)
        ids = {"vocab_size": len(tokens) + 1, "bos_token_id": len(tokens) - 1, "eos_token_id": len(tokens)}
        configs = [dict(tower.config) | ids for tower in demo_architecture().text_encoders]
        self.towers = nn.ModuleList(
            cast("Any", encoder)(cast("Any", CLIPTextConfig)(**config))
            for encoder, config in zip(classes, configs, strict=True)
        )

    def pooled_layers(self) -> nn.ModuleList:
        """Return the layers that only the pooled vector depends on."""
        tower = cast("Any", self.towers[-1])
        text = tower.text_model
        return nn.ModuleList([text.encoder.layers[-1], text.final_layer_norm, tower.text_projection])

    def forward(self, captions: Sequence[Sequence[Chunk]]) -> tuple[Tensor, Tensor]:
        """Encode captions of equally many chunks.

        Returns:
            The context (B, 77 * chunks, width) and the pooled vectors (B, width) of the first chunks.
        """
        chunks = [[caption[k] for caption in captions] for k in range(len(captions[0]))]
        encoded = [self._encode_chunks(batch) for batch in chunks]
        return torch.cat([context for context, _ in encoded], dim=1), encoded[0][1]

    def _encode_chunks(self, chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor]:
        contexts: list[Tensor] = []
        pooled = None
        for tower, pad in zip(self.towers, self.pads, strict=True):
            ids = torch.tensor([chunk.pad_ids(pad) for chunk in chunks])
            output = cast("Any", tower)(self.token_map[ids], output_hidden_states=True)
            contexts.append(output.hidden_states[-2])
            end = (ids == EOS).int().argmax(dim=1)
            pooled = output.last_hidden_state[torch.arange(len(chunks)), end]
        pooled = cast("Any", self.towers[-1]).text_projection(pooled)
        return torch.cat(contexts, dim=-1), pooled

    def expand_states(self) -> list[dict[str, Tensor]]:
        """Return the state dict of each encoder over the full vocabulary."""
        states: list[dict[str, Tensor]] = []
        for tower in self.towers:
            state = dict(tower.state_dict())
            for name in [name for name in state if name.endswith("token_embedding.weight")]:
                state[name] = state[name][self.token_map]
            states.append(
                {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}
            )
        return states

    def load_expanded_states(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Load state dicts over the full vocabulary. All unknown tokens have the same row there; the first is used."""
        tokens = list_caption_tokens()
        unknown = next(token for token in range(VOCABULARY_SIZE) if token not in tokens)
        rows = [unknown, *tokens]
        for tower, state in zip(self.towers, states, strict=True):
            reduced = {
                name: tensor[rows] if name.endswith("token_embedding.weight") else tensor
                for name, tensor in state.items()
            }
            tower.load_state_dict(reduced)


def split_captions(captions: Iterable[str], max_chunks: int) -> list[tuple[Chunk, ...]]:
    """Split captions into chunks as the server does, without prompt weights.

    All captions get as many chunks as the longest one, at most `max_chunks`; empty chunks fill up the others.
    """
    split = [split_chunks(parse(caption, "nai")[0].runs)[:max_chunks] for caption in captions]
    longest = max(map(len, split))
    unweighted = [tuple(Chunk(chunk.ids, (1.0,) * len(chunk.ids)) for chunk in chunks) for chunks in split]
    return [(*chunks, *(EMPTY for _ in range(longest - len(chunks)))) for chunks in unweighted]


def insert_unknown_tokens(
    chunks: Sequence[Chunk], unknown: Sequence[int], position: float
) -> tuple[Chunk, ...]:
    """Insert unknown tokens between two tags of a caption's first chunk, as many as fit.

    Args:
        position: 0 inserts them before the first tag, 1 before the last.
    """
    ids, room = chunks[0].ids, CHUNK - len(chunks[0].ids)
    tag_starts = [0, *(k + 1 for k, token in enumerate(ids) if token == COMMA)]
    start = tag_starts[int(position * (len(tag_starts) - 1))]
    first = (*ids[:start], *unknown[:room], *ids[start:])
    return (Chunk(first, (1.0,) * len(first)), *chunks[1:])
