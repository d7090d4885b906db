"""What a row of a pass is conditioned on by ControlNets (Zhang et al. 2023), and the sum of what they add to a UNet.

A control map is fitted to the image once, and resized to what the row sees of it: the low-resolution copies of SMEA and
of a pyramid have maps of their size. A map is encoded once for each size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from pipelines.adapters.control_network import DiffusersControlNet
from pipelines.job import RgbImage
from pipelines.types import Size
from pipelines.unet.unet import Residuals

SCALE = 8
"""Pixels of a map for each latent."""


class ControlMap:
    """A control map of one pass.

    It covers the image and is cropped at the center where its shape is another, as "crop and resize" does elsewhere.

    Args:
        size: the image's.
        dtype: the one the network computes in.
    """

    def __init__(
        self,
        network: DiffusersControlNet,
        image: RgbImage,
        size: Size,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._network, self._device, self._dtype = network, device, dtype
        picture = Image.frombytes("RGB", (image.width, image.height), image.rgb)
        self._image = (
            picture if picture.size == size else ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
        )
        self._hints: dict[tuple[int, int], Tensor] = {}

    def encode(self, height: int, width: int) -> Tensor:
        """Return the hint (width, height, width) for latents of this height and width."""
        size = height, width
        if size not in self._hints:
            self._hints[size] = self._network.encode_map(self._read_pixels(width * SCALE, height * SCALE))[0]
        return self._hints[size]

    def _read_pixels(self, width: int, height: int) -> Tensor:
        picture = self._image
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        values = torch.tensor(np.array(picture), dtype=torch.float32, device=self._device) / 255
        return values.permute(2, 0, 1)[None].to(self._dtype)


@dataclass(frozen=True, slots=True)
class RowControl:
    """One ControlNet of a row.

    Attributes:
        start, end: shares of the steps, as in `pipelines.job.Control`.
    """

    network: DiffusersControlNet
    map: ControlMap
    scale: float = 1.0
    mode: int | None = None
    start: float = 0.0
    end: float = 1.0

    @property
    def stack_key(self) -> object:
        """A key that is equal for controls whose rows can share a pass; their maps need not be the same."""
        return id(self.network), self.scale, self.mode


RowControls = tuple[RowControl, ...]


def sum_residuals(
    rows: Sequence[RowControls],
    latents: Tensor,
    timesteps: Tensor,
    context: Tensor,
    added_cond: Mapping[str, Tensor] | None,
    halvings: int,
) -> Residuals | None:
    """Return the sum of what the ControlNets of rows with equal stack keys add; None if they have none.

    Args:
        latents: those that the UNet sees, (B, 4, h, w), without the channels of an inpainting UNet.
    """
    total: Residuals | None = None
    height, width = latents.shape[-2:]
    for controls in zip(*rows, strict=True):
        hint = torch.stack([control.map.encode(height, width) for control in controls])
        network, scale, mode = controls[0].network, controls[0].scale, controls[0].mode
        down, middle = network(latents, timesteps, context, added_cond, halvings, hint, scale, mode)
        if total is not None:
            down = [first + second for first, second in zip(total[0], down, strict=True)]
            middle = total[1] + middle
        total = down, middle
    return total
