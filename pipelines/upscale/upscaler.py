"""Upscaling: with a network in tiles, or with Lanczos alone."""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipelines.errors import NotFinite
from pipelines.steps import Part, PartCoroutine, run_parts
from pipelines.types import Pixels
from pipelines.upscale.esrgan import load_rrdbnet
from pipelines.upscale.rrdbnet import RrdbNet

MAX_TILE_OUTPUT = 1536
"""Side in pixels of the largest upscaled tile; 64 features then take about 1.5 GB in float32 on a CPU."""
MARGIN = 56
"""Cells of context around the part of a tile that is kept.

The receptive field of 23 blocks reaches 349 cells, but distant cells matter little. The numbers are the largest change
of a pixel, in 255ths, by its distance from a cut. Random weights are no guide: with PyTorch's initialization it is
below 1 from 8 cells on, and from 16 cells with weights twice as large or He's initialization. Real-ESRGAN's weights
depend on more context. The anime network of 6 blocks, on 60 crops of drawn images: 18 at 16 cells, 2.8 at 32, 0.6 at
40, 0.2 at 48, 0.02 at 56. The network of 23 blocks, on 16 crops: 31 at 16 cells, 5.6 at 32, 1.5 at 48, 0.7 at 56,
0.4 at 64.
"""
MAX_PASSES = 2


class Upscaler:
    """Upscales with one network, tile by tile.

    A cell is one position in the network's blocks: a pixel, or the square of pixels that is folded into channels.

    Args:
        tile: the largest side of a tile in cells; None allows tiles whose output is MAX_TILE_OUTPUT pixels wide.
        margin: cells of context on each side of the kept part of a tile, except at the image's borders.
    """

    def __init__(self, network: RrdbNet, tile: int | None = None, margin: int = MARGIN) -> None:
        # with fewer than two doublings the blocks' tensors, not the output's, are the largest in memory
        self._tile = tile or MAX_TILE_OUTPUT >> max(2, network.config.doublings)
        self._network, self._margin = network, margin
        assert self._tile > 2 * margin, "the margins must be smaller than half a tile"

    @property
    def scale(self) -> int:
        """Output height and width over the input's."""
        return self._network.config.scale

    def upscale(self, pixels: Pixels) -> Pixels:
        """Upscale RGB (h, w, 3) to (scale * h, scale * w, 3); raise NotFinite if the network's output is not finite."""
        return run_parts(self.upscale_tiles(pixels))

    def upscale_tiles(self, pixels: Pixels) -> PartCoroutine[Pixels]:
        """Upscale likewise, tile by tile."""
        height, width, _ = pixels.shape
        fold, cell = self._network.config.fold, self._network.config.fold * self.scale
        padded = np.pad(pixels, ((0, -height % fold), (0, -width % fold), (0, 0)), "edge")
        result = np.empty((padded.shape[0] * self.scale, padded.shape[1] * self.scale, 3), np.uint8)
        sides = (split_tiles(length // fold, self._tile, self._margin) for length in padded.shape[:2])
        tiles = list(product(*sides))
        for number, (rows, columns) in enumerate(tiles, start=1):
            compute = partial(self._upscale_tile, padded[rows.input(fold), columns.input(fold)])
            output = yield Part(compute, number, len(tiles))
            kept = output[rows.kept_in_tile(cell), columns.kept_in_tile(cell)]
            result[rows.kept(cell), columns.kept(cell)] = kept
        return np.ascontiguousarray(result[: height * self.scale, : width * self.scale])

    def _upscale_tile(self, pixels: Pixels) -> Pixels:
        weight = next(self._network.parameters())
        image = torch.tensor(pixels)[None].permute(0, 3, 1, 2).to(weight.device)
        with torch.inference_mode():
            output = self._network(image.to(weight.dtype) / 255)[0]
            if not bool(output.isfinite().all()):
                raise NotFinite("the upscaler returned an image that is not finite")
            scaled = (output.float().clamp(0, 1) * 255).round().to(torch.uint8)
        return scaled.permute(1, 2, 0).cpu().numpy()


def load_upscaler(
    path: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Upscaler:
    """Load an ESRGAN-family upscaler; raise WeightsError if the file is unreadable, incomplete or no such upscaler."""
    return Upscaler(load_rrdbnet(path, torch.device(device), dtype))


@dataclass(frozen=True, slots=True)
class TileSpan:
    """A tile along one side of the image, in cells: [start, stop) is the input, [first, last) is kept of the output.

    Its methods return slices in pixels, for cells `cell` pixels wide.
    """

    start: int
    stop: int
    first: int
    last: int

    def input(self, cell: int) -> slice:
        """The tile's input, in the image."""
        return slice(self.start * cell, self.stop * cell)

    def kept(self, cell: int) -> slice:
        """The kept part, in the image."""
        return slice(self.first * cell, self.last * cell)

    def kept_in_tile(self, cell: int) -> slice:
        """The kept part, in the tile."""
        return slice((self.first - self.start) * cell, (self.last - self.start) * cell)


def split_tiles(length: int, tile: int, margin: int) -> list[TileSpan]:
    """Split a side of `length` cells into as few tiles as possible, all of the smallest length that still covers it.

    Tiles are evenly spaced. Neighbors overlap by at least two margins and are cut in the middle of the overlap. The
    first and the last tile end at the image's borders, so that the network pads there as it would without tiles.
    """
    count = max(1, -(-(length - 2 * margin) // (tile - 2 * margin)))
    size = -(-(length + (count - 1) * 2 * margin) // count)
    starts = [(length - size) * number // max(1, count - 1) for number in range(count)]
    cuts = [(left + size + right) // 2 for left, right in pairwise(starts)]
    kept = pairwise([0, *cuts, length])
    return [TileSpan(start, start + size, *ends) for start, ends in zip(starts, kept, strict=True)]


def resize(
    pixels: Pixels,
    width: int,
    height: int,
    upscaler: Upscaler | None = None,
) -> Pixels:
    """Resize an image: upscale it until neither side is too small, then fit it to the size with Lanczos.

    The network runs at most MAX_PASSES times. It does not run if there is no upscaler, if its scale is 1, or if the
    image is large enough already. Raise NotFinite if the network's output is not finite.
    """
    return run_parts(resize_tiles(pixels, width, height, upscaler))


def resize_tiles(
    pixels: Pixels, width: int, height: int, upscaler: Upscaler | None = None
) -> PartCoroutine[Pixels]:
    """Resize likewise, tile by tile where the network runs."""
    enlarged = yield from enlarge_tiles(pixels, width, height, upscaler)
    return resize_lanczos(enlarged, width, height)


def enlarge_tiles(
    pixels: Pixels, width: int, height: int, upscaler: Upscaler | None = None
) -> PartCoroutine[Pixels]:
    """Run the network until neither side is too small, at most MAX_PASSES times, or return the image as it is."""
    for _ in range(MAX_PASSES):
        is_large = pixels.shape[0] >= height and pixels.shape[1] >= width
        if upscaler is None or upscaler.scale == 1 or is_large:
            break
        pixels = yield from upscaler.upscale_tiles(pixels)
    return pixels


def resize_lanczos(pixels: Pixels, width: int, height: int) -> Pixels:
    """Resize an image (h, w, 3) to (height, width, 3) with Lanczos."""
    image = Image.fromarray(pixels)
    return np.array(image.resize((width, height), Image.Resampling.LANCZOS))
