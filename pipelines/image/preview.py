"""Rough previews from latents without the VAE: a quadratic map from a latent pixel to a color.

The map is fitted to the loaded VAE by decoding one patch of smooth random latents, so there are no constants to update
for another model's decoder. SDXL's VAE is nearly linear there; on small VAEs the squares halve the error.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from pipelines.image.vae import to_bytes
from pipelines.types import Pixels

DecodePreview = Callable[[Tensor], Tensor]
"""Turns latents (4, h, w) into RGB bytes (height, width, 3) of an image of any size, on the latents' device."""
SIDE = 48  # height and width of the random latents
PATCH = 8  # latents between two random values, along each side
SPREAD = 1.2  # standard deviation of the random values, a little more than that of latents
RIDGE = 0.1
"""Penalty on the coefficients of the products, so that they do not run away where latents are larger than here."""


def fit_preview(decode: Callable[[Tensor], Pixels], device: torch.device) -> DecodePreview:
    """Return a map from latents to images of an eighth of the size, for latents on `device`.

    `decode` is the VAE's: it turns latents (4, 48, 48) into an image (384, 384, 3).
    """
    latents = make_sample()
    image = torch.tensor(decode(latents)).permute(2, 0, 1).float() / 127.5 - 1
    matrix = _fit(_make_features(latents), avg_pool2d(image, 8).flatten(1)).to(device)

    def decode_preview(latents: Tensor) -> Tensor:
        colors = matrix @ _make_features(latents.float())
        return to_bytes(colors.reshape(3, *latents.shape[1:]))

    return decode_preview


def make_sample() -> Tensor:
    """Return smooth random latents (4, 48, 48)."""
    generator = torch.Generator().manual_seed(0)
    coarse = SPREAD * torch.randn(1, 4, SIDE // PATCH, SIDE // PATCH, generator=generator)
    return interpolate(coarse, scale_factor=PATCH, mode="bilinear")[0]


def correlate(preview: Tensor, image: Tensor) -> float:
    """Return the correlation of two images' bytes (height, width, 3), the second several times as large."""
    channels = image.permute(2, 0, 1).float()
    small = avg_pool2d(channels, image.shape[0] // preview.shape[0]).permute(1, 2, 0)
    pixels = torch.stack([preview.float().flatten(), small.flatten()])
    return float(torch.corrcoef(pixels)[0, 1])


def _fit(features: Tensor, colors: Tensor) -> Tensor:
    """Return the matrix (3, 15) that takes features (15, n) to colors (3, n), by ridge regression."""
    penalty = torch.full((len(features),), RIDGE * features.shape[1])
    penalty[:5] = 1e-6  # channels and constant are free
    normal = features @ features.mT + torch.diag(penalty)
    solve = cast("Callable[[Tensor, Tensor], Tensor]", torch.linalg.solve)
    return solve(normal, features @ colors.mT).mT


def _make_features(latents: Tensor) -> Tensor:
    """Return a column for each latent pixel: four channels, a constant and the ten products, (15, h * w)."""
    channels = latents.flatten(1)
    products = [channels[i] * channels[j] for i in range(4) for j in range(i, 4)]
    return torch.cat([channels, torch.ones_like(channels[:1]), torch.stack(products)])
