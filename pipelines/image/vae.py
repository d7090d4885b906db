"""From latents to pixels and back: the VAE, in tiles where the picture is large.

Tiling depends on the size alone, so that the same request always takes the same path. Tiles overlap and are
blended with straight ramps; all are of one shape. GroupNorm sees each tile for itself, which shifts colours
slightly: the threshold is as high as memory allows.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pipelines.errors import NotFinite
from pipelines.job import RgbImage
from pipelines.types import Pixels
from pipelines.weights.networks import Vae

TILE, OVERLAP = 128, 32
LARGEST_WHOLE = 192 * 192
"""Latent sizes: tiles of 1024 pixels overlapping by 256; up to 1536 x 1536 pixels are decoded whole."""


class VaeCodec:
    """Decodes one VAE's latents, and encodes pictures to them.

    Args:
        scale: what the VAE's latents were multiplied by (0.13025 for SDXL).
        dtype: bfloat16 or float32; float16 overflows in SDXL's VAE, which the retry then mends at a cost.
    """

    def __init__(self, vae: Vae, scale: float, dtype: torch.dtype) -> None:
        self._vae, self._scale, self._dtype = vae, scale, dtype

    def decode(self, latents: Tensor) -> Pixels:
        """Clean latents (4, h, w) to RGB (8h, 8w, 3).

        Raises:
            NotFinite: the latents, or the decoded picture even in float32, are not finite.
        """
        if not bool(latents.isfinite().all()):
            raise NotFinite("the network returned latents that are not finite")
        picture = self._decode(latents, self._dtype)
        if not bool(picture.isfinite().all()):
            picture = self._decode(latents, torch.float32)
        if not bool(picture.isfinite().all()):
            raise NotFinite("the VAE returned a picture that is not finite, in float32 too")
        return to_pixels(picture)

    def encode(self, picture: Tensor) -> Tensor:
        """A picture (3, 8h, 8w) in [-1, 1] to its latents (4, h, w), always the same for the same picture.

        Raises:
            NotFinite: the VAE's latents are not finite, in float32 too.
        """
        for dtype in dict.fromkeys((self._dtype, torch.float32)):
            latents = self._in(
                dtype, lambda dtype=dtype: _run_tiled(self._vae.encode, picture.to(dtype), (8, 1), 4)
            )
            if bool(latents.isfinite().all()):
                return latents * self._scale
        raise NotFinite("the VAE returned latents that are not finite, in float32 too")

    def _decode(self, latents: Tensor, dtype: torch.dtype) -> Tensor:
        """One picture (3, 8h, 8w) in [-1, 1], the VAE computing in this dtype."""
        return self._in(
            dtype, lambda: _run_tiled(self._vae.decode, (latents / self._scale).to(dtype), (1, 8), 3)
        )

    def _in(self, dtype: torch.dtype, work: Callable[[], Tensor]) -> Tensor:
        """Do something while the VAE computes in a dtype."""
        if dtype != self._dtype:
            self._vae.to(dtype)
        try:
            return work()
        finally:
            if dtype != self._dtype:
                self._vae.to(self._dtype)


def _run_tiled(
    code: Callable[[Tensor], Tensor], given: Tensor, scales: tuple[int, int], channels: int
) -> Tensor:
    """Send (C, H, W) through one half of a VAE, in tiles where it is large.

    Args:
        scales: how many places of what is given, and of what is made, a latent is wide.
        channels: of what is made.
    """
    (per_given, per_made), (height, width) = scales, given.shape[-2:]
    height, width = height // per_given, width // per_given
    if height * width <= LARGEST_WHOLE:
        return code(given[None])[0].float()
    total = torch.zeros(channels, height * per_made, width * per_made, device=given.device)
    weight = torch.zeros_like(total[:1])
    ramp = _tile_weights(min(TILE, height), min(TILE, width), per_made).to(given.device)
    for top in tile_starts(height):
        for left in tile_starts(width):
            place = (..., *_window(top, left, per_made))
            total[place] += code(given[..., *_window(top, left, per_given)][None])[0].float() * ramp
            weight[place] += ramp
    return total / weight


def _window(top: int, left: int, scale: int) -> tuple[slice, slice]:
    """The place of the tile that begins at a latent."""
    return slice(top * scale, (top + TILE) * scale), slice(left * scale, (left + TILE) * scale)


def tile_starts(length: int) -> list[int]:
    """Where tiles begin along a side: evenly spread, overlapping by at least OVERLAP, the last flush."""
    if length <= TILE:
        return [0]
    count = -(-(length - OVERLAP) // (TILE - OVERLAP))
    return [round(k * (length - TILE) / (count - 1)) for k in range(count)]


def _tile_weights(height: int, width: int, scale: int) -> Tensor:
    """The weights of a tile of so many latents: rising over the overlap, flat inside, never zero."""

    def side(length: int) -> Tensor:
        steps = torch.arange(length * scale) + 0.5
        return torch.minimum(steps, steps.flip(0)).clamp(max=OVERLAP * scale) / (OVERLAP * scale)

    return side(height)[:, None] * side(width)


def to_pixels(picture: Tensor) -> Pixels:
    """[-1, 1] floats (3, height, width) to rounded bytes (height, width, 3)."""
    scaled = ((picture + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(1, 2, 0).contiguous().cpu().numpy()


def to_tensor(picture: RgbImage) -> Tensor:
    """RGB bytes to floats (3, height, width) in [-1, 1]."""
    pixels = torch.frombuffer(bytearray(picture.rgb), dtype=torch.uint8)
    # channels first in memory too: torch's GroupNorm is a hundred times less exact on channels last
    channels = pixels.view(picture.height, picture.width, 3).permute(2, 0, 1).contiguous()
    return channels.float() / 127.5 - 1
