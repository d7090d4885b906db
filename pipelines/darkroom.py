"""From latents to pixels: decoding, in tiles where the picture is large.

Tiling depends on the size alone, so that the same request always takes the same path. Tiles overlap and are
blended with straight ramps; all are of one shape. GroupNorm sees each tile for itself, which shifts colours
slightly: the threshold is as high as memory allows.
"""

import numpy as np
import torch
from torch import Tensor

from pipelines.errors import NotFinite
from pipelines.networks import Decoder

TILE, OVERLAP = 128, 32
LARGEST_WHOLE = 192 * 192
"""Latent sizes: tiles of 1024 pixels overlapping by 256; up to 1536 x 1536 pixels are decoded whole."""

Pixels = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]


class Darkroom:
    """Decodes one VAE's latents.

    Args:
        scale: what the VAE's latents were multiplied by (0.13025 for SDXL).
        dtype: bfloat16 or float32; float16 overflows in SDXL's VAE, which the retry then mends at a cost.
    """

    def __init__(self, vae: Decoder, scale: float, dtype: torch.dtype) -> None:
        self._vae, self._scale, self._dtype = vae, scale, dtype

    def develop(self, latents: Tensor) -> Pixels:
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

    def _decode(self, latents: Tensor, dtype: torch.dtype) -> Tensor:
        """One picture (3, 8h, 8w) in [-1, 1], the VAE computing in this dtype."""
        if dtype != self._dtype:
            self._vae.to(dtype)
        try:
            scaled = (latents / self._scale)[None].to(dtype)
            height, width = scaled.shape[-2:]
            if height * width <= LARGEST_WHOLE:
                return self._vae.decode(scaled)[0].float()
            return self._tiled(scaled)
        finally:
            if dtype != self._dtype:
                self._vae.to(self._dtype)

    def _tiled(self, scaled: Tensor) -> Tensor:
        height, width = scaled.shape[-2:]
        total = torch.zeros(3, height * 8, width * 8, device=scaled.device)
        weight = torch.zeros(1, height * 8, width * 8, device=scaled.device)
        ramp = _ramp(min(TILE, height), min(TILE, width)).to(scaled.device)
        for top in starts(height):
            for left in starts(width):
                tile = scaled[..., top : top + TILE, left : left + TILE]
                place = np.s_[..., top * 8 : (top + TILE) * 8, left * 8 : (left + TILE) * 8]
                total[place] += self._vae.decode(tile)[0].float() * ramp
                weight[place] += ramp
        return total / weight


def starts(length: int) -> list[int]:
    """Where tiles begin along a side: evenly spread, overlapping by at least OVERLAP, the last flush."""
    if length <= TILE:
        return [0]
    count = -(-(length - OVERLAP) // (TILE - OVERLAP))
    return [round(k * (length - TILE) / (count - 1)) for k in range(count)]


def _ramp(height: int, width: int) -> Tensor:
    """A tile's weights in pixels: rising over the overlap, flat inside, never zero."""

    def side(length: int) -> Tensor:
        steps = torch.arange(length * 8) + 0.5
        return torch.minimum(steps, steps.flip(0)).clamp(max=OVERLAP * 8) / (OVERLAP * 8)

    return side(height)[:, None] * side(width)


def to_pixels(picture: Tensor) -> Pixels:
    """[-1, 1] floats (3, height, width) to rounded bytes (height, width, 3)."""
    scaled = ((picture + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(1, 2, 0).contiguous().cpu().numpy()
