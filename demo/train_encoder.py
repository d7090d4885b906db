"""Trains the image encoder of the demo's adapter: `python -m demo.train_encoder FOLDER`.

It learns what taggers do, to tell which of the world's tags a picture shows: what the adapter has to carry over, the
colours above all, is then in the embeddings before a UNet learns to look at them.
"""

import argparse
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import CLIPVisionModelWithProjection

from demo.adapter import WIDTH, new_encoder
from demo.gallery import FORMS, Gallery
from demo.latents import scene_of
from demo.learning import Course, averaged, learn
from demo.scenes import Scene
from demo.shapes import Shape

SCENES, UNSEEN, BATCH, STEPS, RATE = 6000, 300, 48, 5000, 2e-3
"""How many scenes it learns from, and how many others it is tried on."""


class Tagger(nn.Module):
    """The image encoder, and what reads tags off its embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = new_encoder()
        self.head = nn.Linear(WIDTH, len(vocabulary()))

    def forward(self, pictures: Tensor) -> Tensor:
        """How likely each word of the vocabulary is in pictures (B, 3, 224, 224), as logits (B, words)."""
        return self.head(cast("Any", self.encoder)(pictures).image_embeds)


def labels(scene: Scene) -> set[str]:
    """A scene's tags, and of shapes also the kinds and the colours alone."""
    shapes = [one for one in scene.subjects if isinstance(one, Shape)]
    return {*scene.tags(), *(word for one in shapes for word in (one.kind, one.colour))}


def learned_from(count: int, first: int = 0) -> list[Scene]:
    """So many scenes of the world."""
    return [scene_of(FORMS[0], first + number)[0] for number in range(count)]


@cache
def vocabulary() -> list[str]:
    """Every label there is."""
    return sorted(set[str]().union(*(labels(scene) for scene in learned_from(SCENES // 2))))


def wanted(scenes: Sequence[Scene]) -> Tensor:
    """What a tagger should say of scenes, 0 or 1 (B, words)."""
    words = vocabulary()
    own = [labels(scene) for scene in scenes]
    return torch.tensor([[word in said for word in words] for said in own], dtype=torch.float32)


def trained_encoder(folder: Path) -> CLIPVisionModelWithProjection:
    """The encoder that a training came to."""
    return averaged(folder / "encoder.pt", Tagger()).encoder


def told(said: Tensor, right: Tensor) -> float:
    """The share of what is right (B, words) that was said, as logits."""
    return float((said[right > 0] > 0).float().mean())


def main() -> None:
    """Train, writing a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(12)
    gallery, scenes, tagger = Gallery(12), learned_from(SCENES), Tagger()
    strange = learned_from(UNSEEN, first=SCENES)
    right, strangely = wanted(scenes), wanted(strange)

    def loss(step: int) -> Tensor:
        chosen = np.random.default_rng((12, step)).integers(SCENES, size=BATCH)
        pictures = gallery([scenes[int(k)] for k in chosen])
        return binary_cross_entropy_with_logits(tagger(pictures), right[torch.from_numpy(chosen)])

    @torch.no_grad()
    def show(average: nn.Module, step: int) -> None:
        found = told(average(gallery(strange)), strangely)
        print(f"\nafter {step} steps it finds {found:.3f} of the tags in pictures it has not seen")

    learn(tagger, Course(arguments.folder / "encoder.pt", STEPS, RATE, memory=200), loss, show)


if __name__ == "__main__":
    main()
