"""Init images as latents: encoded once a job, then noised for each of the job's images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.image.inpainting import LatentBlend, build_inpaint_channels, erase_masked
from pipelines.image.vae import VaeCodec, to_tensor
from pipelines.job import SEED_MODULUS, InitImage
from pipelines.types import Sigmas


@dataclass(frozen=True, slots=True)
class InitLatents:
    """An init image encoded to latents.

    Attributes:
        latents: (4, h, w) in float32.
        mask: (1, h, w), from 0 (keep) to 1 (change); None without a mask.
        inpaint_channels: an inpainting UNet's extra input channels (5, h, w); None for an ordinary UNet.
    """

    init_image: InitImage
    latents: Tensor
    mask: Tensor | None = None
    inpaint_channels: Tensor | None = None

    def add_noise(self, index: int) -> Tensor:
        """Return the latents for the job's image `index` with NAI's `noise` added.

        The noise is absolute, not relative to a sigma, and has its own seed. As that may equal the image's seed, it is
        the generator's second draw: the first is the image's initial noise.
        """
        if not self.init_image.noise:
            return self.latents
        generator = torch.Generator().manual_seed((self.init_image.noise_seed + index) % SEED_MODULUS)
        _, noise = torch.randn((2, *self.latents.shape), generator=generator)
        return self.latents + self.init_image.noise * noise.to(self.latents)

    def make_latent_blend(self, noise: Tensor, sigmas: Sigmas) -> LatentBlend | None:
        """Return the blend that keeps the image outside the mask, or None without a mask or for an inpainting UNet."""
        if self.mask is None or self.inpaint_channels is not None:
            return None
        return LatentBlend(self.latents, noise, self.mask, sigmas)


def encode_init_image(
    init_image: InitImage, vae: VaeCodec, has_inpainting_unet: bool, device: torch.device
) -> InitLatents:
    """Encode an init image and, if it has a mask and an inpainting UNet will run, that UNet's extra channels."""
    pixels = to_tensor(init_image.picture).to(device)
    latents = vae.encode(pixels)
    if init_image.mask is None:
        return InitLatents(init_image, latents)
    mask_bytes = torch.frombuffer(bytearray(init_image.mask), dtype=torch.uint8)
    mask = mask_bytes.view(1, *latents.shape[1:]).to(device).float() / 255
    if not has_inpainting_unet:
        return InitLatents(init_image, latents, mask)
    inpaint_channels = build_inpaint_channels(mask, vae.encode(erase_masked(pixels, mask)))
    return InitLatents(init_image, latents, mask, inpaint_channels)
