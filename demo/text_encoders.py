"""The demo's text encoders as they are trained: the real vocabulary folded onto the few tokens of its world.

Every token that no caption has shares one place, "something unknown". Captions are sprinkled with such tokens, so
the networks learn to pay no attention to words that mean nothing here; unfolding writes the shared place's vector
into all of their rows.
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
    """The ids that captions are made of, with begin, end and both kinds of padding."""
    said = {token for phrase in PHRASES for token in tokenize(phrase)}
    return tuple(sorted(said | {0, BOS, EOS}))


class TextEncoders(nn.Module):
    """Both text encoders over the folded vocabulary."""

    token_map: Tensor

    def __init__(self) -> None:
        super().__init__()
        known = list_caption_tokens()
        folding = torch.zeros(VOCABULARY_SIZE, dtype=torch.long)
        folding[list(known)] = torch.arange(1, len(known) + 1)
        self.register_buffer("folding", folding, persistent=False)
        self.pads = tuple(tower.pad for tower in demo_architecture().text_encoders)
        kinds = (CLIPTextModel, CLIPTextModelWithProjection)
        places = {"vocab_size": len(known) + 1, "bos_token_id": len(known) - 1, "eos_token_id": len(known)}
        configs = [dict(tower.config) | places for tower in demo_architecture().text_encoders]
        self.towers = nn.ModuleList(
            cast("Any", kind)(cast("Any", CLIPTextConfig)(**config))
            for kind, config in zip(kinds, configs, strict=True)
        )

    def pooled_layers(self) -> nn.ModuleList:
        """The layers that make the pooled vector and nothing else."""
        tower = cast("Any", self.towers[-1])
        text = tower.text_model
        return nn.ModuleList([text.encoder.layers[-1], text.final_layer_norm, tower.text_projection])

    def forward(self, captions: Sequence[Sequence[Chunk]]) -> tuple[Tensor, Tensor]:
        """Captions of equally many chunks to the context (B, 77 * chunks, width) and the pooled vector (B, width)."""
        parts = [[caption[k] for caption in captions] for k in range(len(captions[0]))]
        encoded = [self._encode_chunk(part) for part in parts]
        return torch.cat([context for context, _ in encoded], dim=1), encoded[0][1]

    def _encode_chunk(self, part: Sequence[Chunk]) -> tuple[Tensor, Tensor]:
        sides: list[Tensor] = []
        pooled = None
        for tower, pad in zip(self.towers, self.pads, strict=True):
            ids = torch.tensor([chunk.padded(pad) for chunk in part])
            output = cast("Any", tower)(self.token_map[ids], output_hidden_states=True)
            sides.append(output.hidden_states[-2])
            end = (ids == EOS).int().argmax(dim=1)
            pooled = output.last_hidden_state[torch.arange(len(part)), end]
        pooled = cast("Any", self.towers[-1]).text_projection(pooled)
        return torch.cat(sides, dim=-1), pooled

    def expand_states(self) -> list[dict[str, Tensor]]:
        """The state of each encoder over the real vocabulary."""
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
        """Take over encoders over the real vocabulary: of the unknown tokens' rows, all alike, the first."""
        known = list_caption_tokens()
        unknown = next(token for token in range(VOCABULARY_SIZE) if token not in known)
        rows = [unknown, *known]
        for tower, state in zip(self.towers, states, strict=True):
            small = {
                name: tensor[rows] if name.endswith("token_embedding.weight") else tensor
                for name, tensor in state.items()
            }
            tower.load_state_dict(small)


def split_captions(captions: Iterable[str], max_chunks: int) -> list[tuple[Chunk, ...]]:
    """Captions as the server cuts them, to `most` chunks at the utmost and filled up to the longest."""
    cut = [split_chunks(parse(caption, "nai")[0].runs)[:max_chunks] for caption in captions]
    longest = max(map(len, cut))
    plain = [tuple(Chunk(part.ids, (1.0,) * len(part.ids)) for part in parts) for parts in cut]
    return [(*parts, *(EMPTY for _ in range(longest - len(parts)))) for parts in plain]


def insert_unknown_tokens(parts: Sequence[Chunk], unknown: Sequence[int], where: float) -> tuple[Chunk, ...]:
    """A caption with unknown tokens between two of its tags, as many as there is room for.

    Args:
        where: 0 puts them first, anything up to 1 behind a later tag.
    """
    own, room = parts[0].ids, CHUNK - len(parts[0].ids)
    breaks = [0, *(place + 1 for place, token in enumerate(own) if token == COMMA)]
    place = breaks[int(where * (len(breaks) - 1))]
    first = (*own[:place], *unknown[:room], *own[place:])
    return (Chunk(first, (1.0,) * len(first)), *parts[1:])
