"""Trains the image encoder of the demo's adapter: `python -m demo.train_encoder FOLDER`.

It learns to detect an image's tags and to encode the most important ones like the text encoders do (phrases.py). An
adapter that starts with such tokens is useful to the UNet from the first step.
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

TRAINING_SCENES, TEST_SCENES, BATCH_SIZE, STEPS, LEARNING_RATE = 12_000, 300, 48, 6000, 2e-3
TAG_LOSS_WEIGHT = 10.0
"""Weight of the tag loss; that of the tokens is 1."""


class Tagger(nn.Module):
    """The image encoder with a head that detects tags and the projection to the adapter's tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = build_encoder()
        self.head = nn.Linear(EMBEDDING_WIDTH, len(list_vocabulary()))
        self.projection = build_projection()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of the labels (B, labels) and tokens (B, tokens, width) for images (B, 3, 224, 224)."""
        embeddings = cast("Any", self.encoder)(images).image_embeds
        return self.head(embeddings), self.projection(embeddings)


def list_labels(scene: Scene) -> set[str]:
    """Return the tags of a scene, and the kind and the color of each shape as labels of their own."""
    shapes = [subject for subject in scene.subjects if isinstance(subject, Shape)]
    return {*scene.tags(), *(word for shape in shapes for word in (shape.kind, shape.color))}


def make_scenes(count: int, first: int = 0) -> list[Scene]:
    """Return `count` scenes, numbered from `first`."""
    return [make_scene(REFERENCE_SIZES[0], first + number)[0] for number in range(count)]


@cache
def list_vocabulary() -> list[str]:
    """Return all labels, sorted."""
    return sorted(set[str]().union(*(list_labels(scene) for scene in make_scenes(3000))))


def build_targets(scenes: Sequence[Scene]) -> Tensor:
    """Return which labels each scene has, 0 or 1 (B, labels)."""
    vocabulary = list_vocabulary()
    rows = [[label in labels for label in vocabulary] for labels in map(list_labels, scenes)]
    return torch.tensor(rows, dtype=torch.float32)


def load_encoder(folder: Path) -> Tagger:
    """Load the encoder and the projection that were trained in a folder."""
    return load_average(folder / "encoder.pt", Tagger())


def measure_recall(logits: Tensor, targets: Tensor) -> float:
    """Return the share of the target labels (B, labels) with a positive logit."""
    return float((logits[targets > 0] > 0).float().mean())


def main() -> None:
    """Train, writing checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of checkpoints, cached latents and samples")
    parser.add_argument("--model", type=Path, default=DEMO, help="model file (default: the repository's)")
    arguments = parser.parse_args()
    torch.manual_seed(12)
    images, scenes, tagger = SampleImages(12), make_scenes(TRAINING_SCENES), Tagger()
    test_scenes = make_scenes(TEST_SCENES, first=TRAINING_SCENES)
    targets, test_targets = build_targets(scenes), build_targets(test_scenes)
    phrases = PhraseEncoder(load_model(arguments.model)[0].language)
    empty = phrases.encode("").expand(TOKENS, -1)

    def compute_loss(step: int) -> Tensor:
        chosen = np.random.default_rng((12, step)).integers(TRAINING_SCENES, size=BATCH_SIZE)
        batch = [scenes[int(k)] for k in chosen]
        logits, tokens = tagger(images(batch))
        tag_loss = binary_cross_entropy_with_logits(logits, targets[torch.from_numpy(chosen)])
        empty_loss = mse_loss(tagger.projection(torch.zeros(1, EMBEDDING_WIDTH))[0], empty)
        return TAG_LOSS_WEIGHT * tag_loss + (mse_loss(tokens, phrases(batch)) + empty_loss)

    @torch.no_grad()
    def print_scores(average: nn.Module, step: int) -> None:
        logits, tokens = average(images(test_scenes))
        recall, error = measure_recall(logits, test_targets), mse_loss(tokens, phrases(test_scenes))
        print(f"\nstep {step}, test scenes: {recall:.3f} of the tags detected, token error {error:.3f}")

    config = TrainConfig(arguments.folder / "encoder.pt", STEPS, LEARNING_RATE, average_steps=200)
    train(tagger, config, compute_loss, print_scores)


if __name__ == "__main__":
    main()
