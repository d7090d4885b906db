"""Trains the demo's VAE on crops of drawings: `python -m demo.train_vae FOLDER`.

The loss compares pixels and edges, because edges matter most in flat drawings. Latents are kept near zero mean and unit
variance, so that noise levels mean the same as for SDXL. The decoder is trained with a little noise on them, because
samplers leave some.
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
"""Last step, side of the crops and batch size of each phase. Colors are learned first, from small crops. The last phase
is for the effect of normalization on large areas."""
RENEWAL_RATE = 0.25
"""Images of the pool replaced in a step, on average."""
LATENT_NOISE = 0.05
"""Standard deviation of the noise the decoder is trained with, which the encoder learns to predict."""


def build_vae() -> AutoencoderKL:
    """Return an untrained VAE."""
    return AutoencoderKL(**dict(demo_architecture().vae))  # type: ignore[arg-type]


def load_vae(folder: Path) -> AutoencoderKL:
    """Load the VAE trained in a folder or, without one, the VAE of the model in the repository."""
    vae, file = build_vae(), folder / "vae.pt"
    if file.exists():
        load_average(file, vae)
    else:
        vae.load_state_dict(cast("Any", load_weights(DEMO).vae).module.state_dict())
    return vae


def generate_crops(seed: int, side: int, count: int) -> Iterator[Tensor]:
    """Yield endless batches (count, 3, side, side) in [-1, 1]. Crops with content are more frequent than empty ones."""
    rng = np.random.default_rng(seed)
    pool = [_draw_random_image(rng) for _ in range(POOL_SIZE)]
    while True:
        if rng.random() < RENEWAL_RATE:
            pool[rng.integers(POOL_SIZE)] = _draw_random_image(rng)
        crops = [_crop_image(pool[rng.integers(POOL_SIZE)], side, rng) for _ in range(count)]
        yield torch.stack([to_tensor(crop) for crop in crops])


def _draw_random_image(rng: np.random.Generator) -> Pixels:
    width, height = SIZES[rng.integers(len(SIZES))]
    return random_scene(rng).draw(width, height, rng)


def _crop_image(pixels: Pixels, side: int, rng: np.random.Generator) -> Pixels:
    """Return a random crop, trying up to four times to find one that is not nearly uniform."""
    height, width = pixels.shape[:2]
    for _ in range(4):
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        crop = pixels[top : top + side, left : left + side]
        if crop.std(axis=(0, 1)).sum() > 30:
            break
    return crop


def to_tensor(pixels: Pixels) -> Tensor:
    """Convert bytes (height, width, 3) to floats (3, height, width) in [-1, 1]."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def compute_edges(images: Tensor) -> Tensor:
    """Return the differences to the right and lower neighbors, concatenated as channels."""
    return torch.cat([images.diff(dim=-1)[..., :-1, :], images.diff(dim=-2)[..., :, :-1]], dim=1)


def compute_loss(vae: AutoencoderKL, batch: Tensor) -> Tensor:
    """Return the reconstruction error of a batch plus penalties on mean, variance and log-variance of the latents."""
    posterior = cast("Any", vae.encode(batch)).latent_dist
    latents = posterior.mean
    noisy = latents + LATENT_NOISE * torch.randn_like(latents)
    decoded = cast("Any", vae).decode(noisy, return_dict=False)[0]
    std_error = latents.std(dim=(0, 2, 3)) - 1
    mean = latents.mean(dim=(0, 2, 3))
    logvar_error = (posterior.logvar - 2 * log(LATENT_NOISE)).square().mean()
    penalty = std_error.square().mean() + mean.square().mean() + 0.01 * logvar_error
    pixel_error = l1_loss(decoded, batch)
    edge_error = l1_loss(compute_edges(decoded), compute_edges(batch))
    return pixel_error + 0.7 * edge_error + 0.02 * penalty


def main() -> None:
    """Train, writing checkpoints and grids of originals next to their reconstructions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of checkpoints, cached latents and samples")
    arguments = parser.parse_args()
    torch.manual_seed(1)
    vae = build_vae()
    vae.load_state_dict(
        random_weights(vae, seed=1)
    )  # with torch's smaller ones colors fade on their way through
    cast("Any", vae).to(memory_format=torch.channels_last)
    config = TrainConfig(
        arguments.folder / "vae.pt", PHASES[-1][0], learning_rate=2e-3, average_steps=200, sample_every=250
    )
    phases = [(end, generate_crops(side, side, count)) for end, side, count in PHASES]
    samples = next(generate_crops(99, 64, 16))

    def compute_step_loss(step: int) -> Tensor:
        crops = next(crops for end, crops in phases if step < end)
        return compute_loss(vae, next(crops))

    @torch.no_grad()
    def save_samples(average: nn.Module, step: int) -> None:
        decoded = average(samples).sample
        error = 127.5 * (decoded - samples).abs().mean()
        print(f"\nstep {step}: mean error {float(error):.2f}/255")
        tiles = [to_pixels(image) for pair in zip(samples, decoded, strict=True) for image in pair]
        Image.fromarray(make_grid(tiles, 8)).save(arguments.folder / "vae.png")

    train(vae, config, compute_step_loss, save_samples)


if __name__ == "__main__":
    main()
