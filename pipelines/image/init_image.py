"""The picture a run starts from: encoded once, then noised and kept for each of its images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.image.inpainting import Kept, around, hidden
from pipelines.image.vae import Darkroom, from_pixels
from pipelines.job import SEEDS, Source
from pipelines.sampling.dpm_solver import Ladder


@dataclass(frozen=True, slots=True)
class Origin:
    """A source as latents.

    Attributes:
        latents: the picture's, (4, h, w) in float32.
        change: how much of each place may change, (1, h, w), 0 to 1; None where everything may.
        shown: what an inpainting network is shown beside the latents, (5, h, w); None for an ordinary network.
    """

    source: Source
    latents: Tensor
    change: Tensor | None = None
    shown: Tensor | None = None

    def noised(self, image: int) -> Tensor:
        """The latents of one image with NAI's `noise` on them: absolute, and drawn from a seed of its own.

        That may be the image's own too, so it is the generator's second draw: the first is what the image starts with.
        """
        if not self.source.noise:
            return self.latents
        generator = torch.Generator().manual_seed((self.source.noise_seed + image) % SEEDS)
        _, extra = torch.randn((2, *self.latents.shape), generator=generator)
        return self.latents + self.source.noise * extra.to(self.latents)

    def kept(self, noise: Tensor, sigmas: Ladder) -> Kept | None:
        """What stays of the picture under an ordinary network."""
        if self.change is None or self.shown is not None:
            return None
        return Kept(self.latents, noise, self.change, sigmas)


def make_origin(source: Source, darkroom: Darkroom, inpaints: bool, device: torch.device) -> Origin:
    """Encode a source.

    Args:
        inpaints: whether an inpainting network is to be used where there is a mask.
    """
    picture = from_pixels(source.picture).to(device)
    latents = darkroom.expose(picture)
    if source.mask is None:
        return Origin(source, latents)
    bytes_ = torch.frombuffer(bytearray(source.mask), dtype=torch.uint8)
    change = bytes_.view(1, *latents.shape[1:]).to(device).float() / 255
    shown = around(change, darkroom.expose(hidden(picture, change))) if inpaints else None
    return Origin(source, latents, change, shown)
