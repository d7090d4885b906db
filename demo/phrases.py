"""Training targets of the image adapter's tokens: the text encoders' states for eight phrases about an image."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from demo.adapter import TOKENS
from demo.characters import Character
from demo.scenes import Scene
from demo.text_encoders import TextEncoders, split_captions


def list_phrases(scene: Scene) -> tuple[str, ...]:
    """Return a phrase for each token, in a fixed order. Of two characters they describe the first."""
    phrases = [f"{scene.background} background", scene.framing, scene.count_tags()[0]]
    first = scene.subjects[0]
    if isinstance(first, Character):
        phrases += [f"{first.hair} hair", f"{first.shirt} shirt", f"{first.eyes} eyes"]
        phrases += [first.haircut, first.mouth]
    else:
        phrases += [tag for subject in scene.subjects for tag in subject.tags()]
    return tuple([*phrases, *[""] * TOKENS][:TOKENS])


class PhraseEncoder:
    """Encodes phrases with the text encoders, each once."""

    def __init__(self, encoders: TextEncoders) -> None:
        self._encoders = encoders
        self._states: dict[str, Tensor] = {}

    def __call__(self, scenes: Sequence[Scene]) -> Tensor:
        """Return the target tokens of scenes (B, tokens, width)."""
        return torch.stack(
            [torch.stack([self.encode(phrase) for phrase in list_phrases(scene)]) for scene in scenes]
        )

    @torch.no_grad()
    def encode(self, phrase: str) -> Tensor:
        """Return the state of a phrase's last token (width,); for an empty phrase, that of the begin token."""
        if phrase not in self._states:
            caption = split_captions([phrase], max_chunks=1)
            self._states[phrase] = cast("Tensor", self._encoders(caption)[0])[0, len(caption[0][0].ids)]
        return self._states[phrase]
