"""Trains the demo's VAE on crops of drawn pictures: `python -m demo.train_vae FOLDER`.

Beside the picture itself its edges are compared, since flat drawings live by them. Latents are kept near zero mean
and unit spread, so that noise levels mean for them what they mean for SDXL's, and the decoder learns to bear a little
noise on them, as samplers leave some.
"""

import argparse
from collections.abc import Iterator
from math import log
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderKL  # pyright: ignore[reportPrivateImportUsage]
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from demo.architecture import demo_architecture
from demo.captions import random_scene
from demo.checkpoint import DEMO, random_weights
from demo.scenes import make_grid
from demo.training_loop import TrainConfig, load_average, train
from pipelines.image.vae import to_pixels
from pipelines.types import Pixels
from pipelines.weights.load import load_weights

SIZES = ((256, 384), (384, 256), (256, 256), (512, 768), (768, 512), (512, 512), (832, 1216), (1024, 1024))
POOL_SIZE = 192
PHASES = ((1800, 32, 16), (4000, 64, 16), (5200, 192, 2))
"""Up to which step crops have which side and batches which size. Colors are learned first, from little; the last
phase is for what normalization does to large areas."""
RENEWAL_RATE = 0.25
"""How many pictures of the pool are drawn anew in a step."""
LATENT_NOISE = 0.05
"""The spread of the noise that the decoder learns to bear, and that the encoder learns to announce."""


def build_vae() -> AutoencoderKL:
    """A VAE of the demo's shape, untrained."""
    return AutoencoderKL(**dict(demo_architecture().vae))  # type: ignore[arg-type]


def load_vae(folder: Path) -> AutoencoderKL:
    """The VAE that was trained in a folder, or the one kept in the repository when none was."""
    vae, file = build_vae(), folder / "vae.pt"
    if file.exists():
        load_average(file, vae)
    else:
        vae.load_state_dict(cast("Any", load_weights(DEMO).vae).module.state_dict())
    return vae


def generate_crops(seed: int, side: int, count: int) -> Iterator[Tensor]:
    """Endless batches (count, 3, side, side) in [-1, 1]; places with something in them come more often."""
    rng = np.random.default_rng(seed)
    pool = [_draw_random_image(rng) for _ in range(POOL_SIZE)]
    while True:
        if rng.random() < RENEWAL_RATE:
            pool[rng.integers(POOL_SIZE)] = _draw_random_image(rng)
        yield torch.stack(
            [to_tensor(_crop_image(pool[rng.integers(POOL_SIZE)], side, rng)) for _ in range(count)]
        )


def _draw_random_image(rng: np.random.Generator) -> Pixels:
    width, height = SIZES[rng.integers(len(SIZES))]
    return random_scene(rng).draw(width, height, rng)


def _crop_image(picture: Pixels, side: int, rng: np.random.Generator) -> Pixels:
    height, width = picture.shape[:2]
    for _ in range(4):
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        part = picture[top : top + side, left : left + side]
        if part.std(axis=(0, 1)).sum() > 30:
            break
    return part


def to_tensor(pixels: Pixels) -> Tensor:
    """Bytes (height, width, 3) to floats (3, height, width) in [-1, 1]."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def compute_edges(picture: Tensor) -> Tensor:
    """Differences of neighbours, to the right and downwards, side by side."""
    return torch.cat([picture.diff(dim=-1)[..., :-1, :], picture.diff(dim=-2)[..., :, :-1]], dim=1)


def compute_loss(vae: AutoencoderKL, batch: Tensor) -> Tensor:
    """How far a batch comes back from itself."""
    posterior = cast("Any", vae.encode(batch)).latent_dist
    latents = posterior.mean
    noisy = latents + LATENT_NOISE * torch.randn_like(latents)
    drawn = cast("Any", vae).decode(noisy, return_dict=False)[0]
    spread = latents.std(dim=(0, 2, 3)) - 1
    center = latents.mean(dim=(0, 2, 3))
    announced = (posterior.logvar - 2 * log(LATENT_NOISE)).square().mean()
    kept = spread.square().mean() + center.square().mean() + 0.01 * announced
    return l1_loss(drawn, batch) + 0.7 * l1_loss(compute_edges(drawn), compute_edges(batch)) + 0.02 * kept


def main() -> None:
    """Train, writing a checkpoint and sheets of originals beside what comes back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(1)
    vae = build_vae()
    vae.load_state_dict(random_weights(vae, seed=1))  # torch's own are so small that colors fade on the way
    cast("Any", vae).to(memory_format=torch.channels_last)
    course = TrainConfig(
        arguments.folder / "vae.pt", PHASES[-1][0], learning_rate=2e-3, average_steps=200, sample_every=250
    )
    batches = [(end, generate_crops(side, side, count)) for end, side, count in PHASES]
    samples = next(generate_crops(99, 64, 16))

    @torch.no_grad()
    def show(average: nn.Module, step: int) -> None:
        back = average(samples).sample
        error = 127.5 * (back - samples).abs().mean()
        print(f"\nstep {step}: mean error {float(error):.2f}/255")
        pairs = [to_pixels(picture) for pair in zip(samples, back, strict=True) for picture in pair]
        Image.fromarray(make_grid(pairs, 8)).save(arguments.folder / "vae.png")

    train(
        vae,
        course,
        lambda step: compute_loss(vae, next(next(some for end, some in batches if step < end))),
        show,
    )


if __name__ == "__main__":
    main()
