"""The VAE: latents to pixels and back, in tiles where the image is large.

Whether to tile depends on the size alone, so that a request always takes the same path. All tiles have one shape; they
overlap and are blended with linear ramps. GroupNorm normalizes each tile on its own, which shifts colors slightly, so
the threshold is as high as memory allows.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor

from pipelines.device import copies_in_background
from pipelines.errors import NotFinite
from pipelines.job import RgbImage
from pipelines.steps import Part, PartCoroutine, run_parts
from pipelines.types import Pixels
from pipelines.weights.networks import Vae


@dataclass(frozen=True, slots=True)
class Tiling:
    """How large images are divided; all in latents, of 8x8 pixels.

    Attributes:
        tile, overlap: sides of a tile, and of what it shares with the next one.
        untiled: latents that are processed in one piece.
    """

    tile: int
    overlap: int
    untiled: int

    def applies(self, latents: Tensor) -> bool:
        """Return whether latents (..., h, w) are processed in several tiles."""
        return latents.shape[-2] * latents.shape[-1] > self.untiled

    def find_shape(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) of what is processed at a time of latents of a size."""
        height, width = size
        if height * width <= self.untiled:
            return size
        return min(height, self.tile), min(width, self.tile)

    def find_starts(self, length: int) -> list[int]:
        """Return the start of each tile along a side of `length` latents: evenly spaced, overlapping enough."""
        if length <= self.tile:
            return [0]
        count = -(-(length - self.overlap) // (self.tile - self.overlap))
        return [round(k * (length - self.tile) / (count - 1)) for k in range(count)]


TILES = Tiling(tile=128, overlap=32, untiled=192 * 192)
"""Tiles of 1024 pixels that overlap by 256, for more than 1536x1536."""
SMALL_TILES = Tiling(tile=64, overlap=24, untiled=80 * 80)
"""Tiles of 512 pixels, for more than 640x640: where a GPU has little memory."""


class VaeCodec:
    """Decodes latents to pixels and encodes images to latents, with one VAE.

    Args:
        scale: the factor between the VAE's latents and the UNet's (0.13025 for SDXL).
        dtype: bfloat16 or float32; float16 overflows in SDXL's VAE, which costs a second run in float32.
    """

    def __init__(self, vae: Vae, scale: float, dtype: torch.dtype, tiling: Tiling = TILES) -> None:
        self._vae, self._scale, self._dtype, self.tiling = vae, scale, dtype, tiling

    def decode(self, latents: Tensor) -> Pixels:
        """Decode clean latents (4, h, w) to RGB (8h, 8w, 3), in float32 if the result is not finite otherwise.

        Raise NotFinite if the latents, or the decoded image even in float32, are not finite.
        """
        return self.decode_images(latents[None])[0]

    def decode_images(self, latents: Tensor) -> list[Pixels]:
        """Decode the latents (B, 4, h, w) of several images likewise, together."""
        return run_parts(self.decode_tiles(latents))

    def decode_tiles(self, latents: Tensor) -> PartCoroutine[list[Pixels]]:
        """Decode likewise, tile by tile."""
        are_latents_finite = latents.isfinite().all()
        for dtype in dict.fromkeys((self._dtype, torch.float32)):
            run = partial(self._run_in, dtype, self._vae.decode)
            images = yield from _iter_tiles(run, latents / self._scale, (1, 8), 3, self.tiling)
            copies = [_start_copy(to_bytes(image)) for image in images]
            # the only wait for the device, which the copies have reached by then
            if bool(images.isfinite().all() & are_latents_finite):
                return [copy.numpy() for copy in copies]
            if not bool(are_latents_finite):
                raise NotFinite("the network returned latents that are not finite")
        raise NotFinite("the VAE returned an image that is not finite, in float32 too")

    def compile_decoder(self, sizes: Iterable[tuple[int, int]]) -> None:
        """Compile the decoder for images of some sizes (height, width), in latents; those of one tile are the same."""
        shapes = (self.tiling.find_shape(size) for size in sizes)
        self._vae.compile_decoder(dict.fromkeys(shapes))

    def encode(self, image: Tensor) -> Tensor:
        """Encode an image (3, 8h, 8w) in [-1, 1] to latents (4, h, w); the same image always gives the same latents.

        Raise NotFinite if they are not finite, in float32 too.
        """
        return run_parts(self.encode_tiles(image))

    def encode_tiles(self, image: Tensor) -> PartCoroutine[Tensor]:
        """Encode likewise, tile by tile."""
        for dtype in dict.fromkeys((self._dtype, torch.float32)):
            run = partial(self._run_in, dtype, self._vae.encode)
            (latents,) = yield from _iter_tiles(run, image[None], (8, 1), 4, self.tiling)
            if bool(latents.isfinite().all()):
                return latents * self._scale
        raise NotFinite("the VAE returned latents that are not finite, in float32 too")

    def _run_in(self, dtype: torch.dtype, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Run the VAE's encoder or decoder with its weights in `dtype`, and convert them back afterwards."""
        try:
            if dtype != self._dtype:
                self._vae.to(dtype)
            return network(x.to(dtype)).float()
        finally:
            if dtype != self._dtype:
                self._vae.to(self._dtype)


def _iter_tiles(
    run: Callable[[Tensor], Tensor], x: Tensor, scales: tuple[int, int], channels: int, tiling: Tiling
) -> PartCoroutine[Tensor]:
    """Run the VAE's encoder or decoder on (B, C, H, W), in tiles where that is large.

    Args:
        scales: input and output elements per latent, along each side.
        channels: of the output.
    """
    (scale_in, scale_out), (height, width) = scales, x.shape[-2:]
    height, width = height // scale_in, width // scale_in
    if height * width <= tiling.untiled:
        return (yield Part(partial(run, x)))
    total = torch.zeros(len(x), channels, height * scale_out, width * scale_out, device=x.device)
    total_weight = torch.zeros_like(total[0, :1])
    weights = _make_tile_weights(tiling, (height, width), scale_out).to(x.device)
    places = list(product(tiling.find_starts(height), tiling.find_starts(width)))
    for number, place in enumerate(places, start=1):
        window = (..., *_window(tiling.tile, place, scale_out))
        part = x[..., *_window(tiling.tile, place, scale_in)]
        output = yield Part(partial(run, part), number, len(places))
        total[window] += output * weights
        total_weight[window] += weights
    return total / total_weight


def _window(tile: int, place: tuple[int, int], scale: int) -> tuple[slice, slice]:
    """Rows and columns of the tile that starts at a latent (row, column), with `scale` elements per latent."""
    top, left = place
    return slice(top * scale, (top + tile) * scale), slice(left * scale, (left + tile) * scale)


def _make_tile_weights(tiling: Tiling, size: tuple[int, int], scale: int) -> Tensor:
    """Return the blending weights of a tile's elements: rising over the overlap, then 1, never 0."""

    def make_ramp(length: int) -> Tensor:
        steps, overlap = torch.arange(min(tiling.tile, length) * scale) + 0.5, tiling.overlap * scale
        return torch.minimum(steps, steps.flip(0)).clamp(max=overlap) / overlap

    height, width = size
    return make_ramp(height)[:, None] * make_ramp(width)


def to_pixels(image: Tensor) -> Pixels:
    """Convert floats (3, height, width) in [-1, 1] to rounded bytes (height, width, 3)."""
    return to_bytes(image).cpu().numpy()


def to_bytes(image: Tensor) -> Tensor:
    """The same, as a tensor on the image's device."""
    scaled = ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(1, 2, 0).contiguous()


def _start_copy(image: Tensor) -> Tensor:
    """Return a copy in CPU memory, which is complete when the device has done what was asked of it so far."""
    return image.to("cpu", non_blocking=copies_in_background(image.device))


def to_tensor(image: RgbImage) -> Tensor:
    """Convert RGB bytes to floats (3, height, width) in [-1, 1]."""
    pixels = torch.frombuffer(bytearray(image.rgb), dtype=torch.uint8)
    # channels first in memory too: torch's GroupNorm is a hundred times less exact on channels last
    channels = pixels.view(image.height, image.width, 3).permute(2, 0, 1).contiguous()
    return channels.float() / 127.5 - 1
