"""The picture a run starts from: encoded once, then noised and kept for each of its images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.image.inpainting import LatentBlend, build_inpaint_channels, erase_masked
from pipelines.image.vae import VaeCodec, to_tensor
from pipelines.job import SEED_MODULUS, InitImage
from pipelines.types import Sigmas


@dataclass(frozen=True, slots=True)
class InitLatents:
    """A source as latents.

    Attributes:
        latents: the picture's, (4, h, w) in float32.
        change: how much of each place may change, (1, h, w), 0 to 1; None where everything may.
        shown: what an inpainting network is shown beside the latents, (5, h, w); None for an ordinary network.
    """

    source: InitImage
    latents: Tensor
    mask: Tensor | None = None
    inpaint_channels: Tensor | None = None

    def add_noise(self, image: int) -> Tensor:
        """The latents of one image with NAI's `noise` on them: absolute, and drawn from a seed of its own.

        That may be the image's own too, so it is the generator's second draw: the first is what the image starts with.
        """
        if not self.source.noise:
            return self.latents
        generator = torch.Generator().manual_seed((self.source.noise_seed + image) % SEED_MODULUS)
        _, extra = torch.randn((2, *self.latents.shape), generator=generator)
        return self.latents + self.source.noise * extra.to(self.latents)

    def latent_blend(self, noise: Tensor, sigmas: Sigmas) -> LatentBlend | None:
        """What stays of the picture under an ordinary network."""
        if self.mask is None or self.inpaint_channels is not None:
            return None
        return LatentBlend(self.latents, noise, self.mask, sigmas)


def encode_init_image(
    source: InitImage, darkroom: VaeCodec, inpaints: bool, device: torch.device
) -> InitLatents:
    """Encode a source.

    Args:
        inpaints: whether an inpainting network is to be used where there is a mask.
    """
    picture = to_tensor(source.picture).to(device)
    latents = darkroom.encode(picture)
    if source.mask is None:
        return InitLatents(source, latents)
    bytes_ = torch.frombuffer(bytearray(source.mask), dtype=torch.uint8)
    change = bytes_.view(1, *latents.shape[1:]).to(device).float() / 255
    shown = (
        build_inpaint_channels(change, darkroom.encode(erase_masked(picture, change))) if inpaints else None
    )
    return InitLatents(source, latents, change, shown)
