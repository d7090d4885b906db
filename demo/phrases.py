"""What an image adapter's tokens begin as: eight phrases of what a picture shows, as the text encoders read them."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from demo.adapter import TOKENS
from demo.characters import Character
from demo.scenes import Scene
from demo.text_encoders import TextEncoders, split_captions


def list_phrases(scene: Scene) -> tuple[str, ...]:
    """One phrase for each token, always in the same places; of two people it is the first who is told of."""
    seen = [f"{scene.background} background", scene.framing, scene.count_tags()[0]]
    first = scene.subjects[0]
    if isinstance(first, Character):
        seen += [
            f"{first.hair} hair",
            f"{first.shirt} shirt",
            f"{first.eyes} eyes",
            first.haircut,
            first.mouth,
        ]
    else:
        seen += [tag for one in scene.subjects for tag in one.tags()]
    return tuple([*seen, *[""] * TOKENS][:TOKENS])


class PhraseEncoder:
    """Phrases in the words of text encoders, each read once."""

    def __init__(self, language: TextEncoders) -> None:
        self._language = language
        self._known: dict[str, Tensor] = {}

    def __call__(self, scenes: Sequence[Scene]) -> Tensor:
        """What the tokens of scenes should be, (B, tokens, width)."""
        return torch.stack(
            [torch.stack([self.encode(said) for said in list_phrases(scene)]) for scene in scenes]
        )

    @torch.no_grad()
    def encode(self, phrase: str) -> Tensor:
        """The state of a phrase's last token (width,), of no phrase that of the beginning."""
        if phrase not in self._known:
            caption = split_captions([phrase], max_chunks=1)
            self._known[phrase] = cast("Tensor", self._language(caption)[0])[0, len(caption[0][0].ids)]
        return self._known[phrase]
