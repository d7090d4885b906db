"""Pictures made larger: by a network in tiles, or by Lanczos' filter alone."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipelines.errors import NotFinite
from pipelines.types import Pixels
from pipelines.upscale.esrgan import load_rrdbnet
from pipelines.upscale.rrdbnet import RrdbNet

LARGEST_MADE = 1536
"""The most pixels along a side that a tile becomes; at that, 64 features take about 1.5 GB in float32 on a CPU."""
MARGIN = 56
"""How many cells a tile sees beyond what is kept of it.

The field of 23 blocks reaches 349 cells, but little comes from afar. Measured was how much a cut changes what lies so
many cells from it, at most, in 255ths. Weights at random are no guide: at PyTorch's initialisation it is below 1
from 8 cells on, and from 16 with weights twice as large or He's. Real-ESRGAN's own see farther: the anime
network of 6 blocks, on 60 pieces of drawn pictures: 18 at 16 cells, 2.8 at 32, 0.6 at 40, 0.2 at 48, 0.02 at 56; that
of 23 blocks, on 16 pieces: 31 at 16 cells, 5.6 at 32, 1.5 at 48, 0.7 at 56, 0.4 at 64.
"""
MOST_PASSES = 2


BeforeTile = Callable[[int, int], None]


def _nothing(_done: int, _of: int) -> None:
    pass


class Upscaler:
    """Enlarges by one network.

    A cell is what the network's blocks see as one place: a pixel, or the square of pixels it folds into channels.

    Args:
        tile: the most cells along a side of a tile; None allows as many as make LARGEST_MADE pixels.
        margin: how many cells a tile at least sees beyond what is kept of it, save at the picture's own borders.
    """

    def __init__(self, network: RrdbNet, tile: int | None = None, margin: int = MARGIN) -> None:
        # where less is made of a cell the blocks, not what they make, are the largest thing in memory
        self._tile = tile or LARGEST_MADE >> max(2, network.shape.doublings)
        self._network, self._margin = network, margin
        assert self._tile > 2 * margin, "nothing would be kept of a tile"

    @property
    def scale(self) -> int:
        """How many times higher and wider a picture becomes."""
        return self._network.shape.scale

    def upscale(self, pixels: Pixels, before_tile: BeforeTile = _nothing) -> Pixels:
        """RGB (h, w, 3) to (scale * h, scale * w, 3).

        Args:
            before_tile: told how many tiles are done, and of how many; what it raises ends the work.

        Raises:
            NotFinite: what the network made is not finite.
        """
        height, width, _ = pixels.shape
        fold, cell = self._network.shape.fold, self._network.shape.fold * self.scale
        whole = np.pad(pixels, ((0, -height % fold), (0, -width % fold), (0, 0)), "edge")
        enlarged = np.empty((whole.shape[0] * self.scale, whole.shape[1] * self.scale, 3), np.uint8)
        sides = (split_tiles(length // fold, self._tile, self._margin) for length in whole.shape[:2])
        tiles = list(product(*sides))
        for done, (rows, columns) in enumerate(tiles):
            before_tile(done, len(tiles))
            made = self._through(whole[rows.seen(fold), columns.seen(fold)])
            enlarged[rows.kept(cell), columns.kept(cell)] = made[rows.within(cell), columns.within(cell)]
        return np.ascontiguousarray(enlarged[: height * self.scale, : width * self.scale])

    def _through(self, pixels: Pixels) -> Pixels:
        """One tile."""
        weight = next(self._network.parameters())
        given = torch.tensor(pixels)[None].permute(0, 3, 1, 2).to(weight.device)
        with torch.inference_mode():
            made = self._network(given.to(weight.dtype) / 255)[0]
            if not bool(made.isfinite().all()):
                raise NotFinite("the upscaler returned a picture that is not finite")
            scaled = (made.float().clamp(0, 1) * 255).round().to(torch.uint8)
        return scaled.permute(1, 2, 0).cpu().numpy()


def load_upscaler(
    path: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Upscaler:
    """Load an ESRGAN-family upscaler from a safetensors file.

    Raises:
        WeightsError: the file cannot be read, is no such upscaler, or not a whole one.
    """
    return Upscaler(load_rrdbnet(path, torch.device(device), dtype))


@dataclass(frozen=True, slots=True)
class TileSpan:
    """A tile along one side, in cells: what the network sees, and the part of it that is kept."""

    start: int
    stop: int
    first: int
    last: int

    def seen(self, cell: int) -> slice:
        """What the network sees of a picture whose cells are so many pixels wide."""
        return slice(self.start * cell, self.stop * cell)

    def kept(self, cell: int) -> slice:
        """Where the kept part lies in the picture."""
        return slice(self.first * cell, self.last * cell)

    def within(self, cell: int) -> slice:
        """Where the kept part lies in the tile."""
        return slice((self.first - self.start) * cell, (self.last - self.start) * cell)


def split_tiles(length: int, tile: int, margin: int) -> list[TileSpan]:
    """The tiles along a side: of one length, the least that so few tiles allow, and evenly spread.

    Neighbours overlap by two margins or more and are cut in the middle of that. The outermost end where the picture
    does, so that its borders are those of the whole.
    """
    count = max(1, -(-(length - 2 * margin) // (tile - 2 * margin)))
    size = -(-(length + (count - 1) * 2 * margin) // count)
    starts = [(length - size) * number // max(1, count - 1) for number in range(count)]
    cuts = [(left + size + right) // 2 for left, right in pairwise(starts)]
    ends = pairwise([0, *cuts, length])
    return [TileSpan(start, start + size, *kept) for start, kept in zip(starts, ends, strict=True)]


def resize(
    pixels: Pixels,
    width: int,
    height: int,
    upscaler: Upscaler | None = None,
    before_tile: BeforeTile = _nothing,
) -> Pixels:
    """A picture at another size: enlarged by the upscaler until it is no smaller, then fitted by Lanczos' filter.

    The network passes twice at most, and not at all where it has nothing to add: without an upscaler, for a size
    that is no larger, or if its scale is 1.

    Raises:
        NotFinite: what the network made is not finite.
    """
    for _ in range(MOST_PASSES):
        if upscaler is None or upscaler.scale == 1 or _covers(pixels, width, height):
            break
        pixels = upscaler.upscale(pixels, before_tile)
    return resize_lanczos(pixels, width, height)


def _covers(pixels: Pixels, width: int, height: int) -> bool:
    return pixels.shape[0] >= height and pixels.shape[1] >= width


def resize_lanczos(pixels: Pixels, width: int, height: int) -> Pixels:
    """A picture (h, w, 3) at another size, (height, width, 3), without any weights."""
    picture = Image.fromarray(pixels)
    return np.array(picture.resize((width, height), Image.Resampling.LANCZOS))
