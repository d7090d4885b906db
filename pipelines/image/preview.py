"""Rough previews from latents without the VAE: one linear map from a latent pixel to a color.

The map is fitted to the loaded VAE by decoding one patch of smooth random latents, so there are no constants to update
for another model's decoder.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from pipelines.image.vae import to_pixels
from pipelines.types import Pixels

Matrix = Tensor
SIDE = 32  # height and width of the random latents
PATCH = 4  # latents between two random values, along each side


def fit_preview(decode: Callable[[Tensor], Tensor]) -> Matrix:
    """Fit the (5, 3) matrix from four latent channels and a constant to a color in [-1, 1].

    `decode` turns latents (4, 32, 32) into an image (3, 256, 256).
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 4, SIDE // PATCH, SIDE // PATCH, generator=generator)
    latents = interpolate(coarse, scale_factor=PATCH, mode="bilinear")[0]
    colors = avg_pool2d(decode(latents).float().cpu(), 8)
    inverse = cast("Tensor", torch.linalg.pinv(_to_rows(latents)))  # pyright: ignore[reportUnknownMemberType]
    return inverse @ colors.flatten(1).T


def make_preview(latents: Tensor, matrix: Matrix) -> Pixels:
    """Turn latents (4, h, w) into RGB bytes (h, w, 3), an eighth of the image's size."""
    colors: Tensor = (_to_rows(latents.float().cpu()) @ matrix).T
    return to_pixels(colors.reshape(3, *latents.shape[-2:]))


def _to_rows(latents: Tensor) -> Tensor:
    """Return a row for each latent pixel: its channels and a constant 1, (h * w, 5)."""
    return torch.cat([latents.flatten(1), torch.ones(1, latents[0].numel())]).T
