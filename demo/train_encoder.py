"""Trains the image encoder of the demo's adapter: `python -m demo.train_encoder FOLDER`.

It learns to tell which of the world's tags a picture shows, as taggers do, and to say the most important ones as the
text encoders would (phrases.py): tokens that begin as words are understood by the UNet from the first step.
"""

import argparse
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from demo.adapter import EMBEDDING_WIDTH, TOKENS, build_encoder, build_projection
from demo.checkpoint import DEMO
from demo.latents import make_scene
from demo.model import load_model
from demo.phrases import PhraseEncoder
from demo.samples import REFERENCE_SIZES, SampleImages
from demo.scenes import Scene
from demo.shapes import Shape
from demo.training_loop import TrainConfig, load_average, train

TRAINING_SCENES, TEST_SCENES, BATCH, STEPS, RATE = 12_000, 300, 48, 6000, 2e-3
"""How many scenes it learns from, and how many others it is tried on."""
TAG_LOSS_WEIGHT = 10.0
"""What the tags count for beside the tokens."""


class Tagger(nn.Module):
    """The image encoder, what reads tags off its embeddings, and what makes an adapter's tokens of them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = build_encoder()
        self.head = nn.Linear(EMBEDDING_WIDTH, len(list_vocabulary()))
        self.projection = build_projection()

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """What is in pictures (B, 3, 224, 224).

        Returns:
            how likely each word of the vocabulary is, as logits (B, words), and the tokens (B, tokens, width).
        """
        seen = cast("Any", self.encoder)(pictures).image_embeds
        return self.head(seen), self.projection(seen)


def list_labels(scene: Scene) -> set[str]:
    """A scene's tags, and of shapes also the kinds and the colors alone."""
    shapes = [one for one in scene.subjects if isinstance(one, Shape)]
    return {*scene.tags(), *(word for one in shapes for word in (one.kind, one.color))}


def make_scenes(count: int, first: int = 0) -> list[Scene]:
    """So many scenes of the world."""
    return [make_scene(REFERENCE_SIZES[0], first + number)[0] for number in range(count)]


@cache
def list_vocabulary() -> list[str]:
    """Every label there is."""
    return sorted(set[str]().union(*(list_labels(scene) for scene in make_scenes(3000))))


def build_targets(scenes: Sequence[Scene]) -> Tensor:
    """What a tagger should say of scenes, 0 or 1 (B, words)."""
    words = list_vocabulary()
    own = [list_labels(scene) for scene in scenes]
    return torch.tensor([[word in said for word in words] for said in own], dtype=torch.float32)


def load_encoder(folder: Path) -> Tagger:
    """The encoder that a training came to, and the projection to tokens."""
    return load_average(folder / "encoder.pt", Tagger())


def measure_recall(said: Tensor, right: Tensor) -> float:
    """The share of what is right (B, words) that was said, as logits."""
    return float((said[right > 0] > 0).float().mean())


def main() -> None:
    """Train, writing a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=DEMO)
    arguments = parser.parse_args()
    torch.manual_seed(12)
    gallery, scenes, tagger = SampleImages(12), make_scenes(TRAINING_SCENES), Tagger()
    strange = make_scenes(TEST_SCENES, first=TRAINING_SCENES)
    right, strangely = build_targets(scenes), build_targets(strange)
    phrasebook = PhraseEncoder(load_model(arguments.model)[0].language)
    nothing = phrasebook.encode("").expand(TOKENS, -1)

    def loss(step: int) -> Tensor:
        chosen = np.random.default_rng((12, step)).integers(TRAINING_SCENES, size=BATCH)
        seen = [scenes[int(k)] for k in chosen]
        said, tokens = tagger(gallery(seen))
        tagging = binary_cross_entropy_with_logits(said, right[torch.from_numpy(chosen)])
        speaking = mse_loss(tokens, phrasebook(seen)) + mse_loss(
            tagger.projection(torch.zeros(1, EMBEDDING_WIDTH))[0], nothing
        )
        return TAG_LOSS_WEIGHT * tagging + speaking

    @torch.no_grad()
    def show(average: nn.Module, step: int) -> None:
        said, tokens = average(gallery(strange))
        found, error = measure_recall(said, strangely), mse_loss(tokens, phrasebook(strange))
        print(
            f"\nafter {step} steps, of unseen pictures: {found:.3f} of the tags, {error:.3f} beside the words"
        )

    train(tagger, TrainConfig(arguments.folder / "encoder.pt", STEPS, RATE, average_steps=200), loss, show)


if __name__ == "__main__":
    main()
