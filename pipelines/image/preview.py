"""A rough picture from latents without decoding them: one linear map from a latent pixel to a colour.

The map is fitted to the VAE at hand, whatever it is, by decoding one patch of smooth random latents: no
constants to go stale when a model brings another decoder.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from pipelines.image.vae import to_pixels
from pipelines.types import Pixels

Matrix = Tensor
SIDE = 32
PATCH = 4


def fit_preview(decode: Callable[[Tensor], Tensor]) -> Matrix:
    """Fit the (5, 3) map from four latent channels and a constant to a colour in [-1, 1].

    Args:
        decode: latents (4, 32, 32) to a picture (3, 256, 256).
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 4, SIDE // PATCH, SIDE // PATCH, generator=generator)
    latents = interpolate(coarse, scale_factor=PATCH, mode="bilinear")[0]
    colours = avg_pool2d(decode(latents).float().cpu(), 8)
    inverse = cast("Tensor", torch.linalg.pinv(_pixels(latents)))  # pyright: ignore[reportUnknownMemberType]
    return inverse @ colours.flatten(1).T


def make_preview(latents: Tensor, matrix: Matrix) -> Pixels:
    """Latents (4, h, w) to RGB bytes (h, w, 3), an eighth of the picture's size."""
    colours: Tensor = (_pixels(latents.float().cpu()) @ matrix).T
    return to_pixels(colours.reshape(3, *latents.shape[-2:]))


def _pixels(latents: Tensor) -> Tensor:
    """One row per latent pixel: its channels and a constant 1."""
    return torch.cat([latents.flatten(1), torch.ones(1, latents[0].numel())]).T
