"""The image a pass starts from, encoded to latents once for all of its images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.image.inpainting import LatentBlend, build_inpaint_channels, erase_masked
from pipelines.image.vae import VaeCodec, to_tensor
from pipelines.job import InitImage, RgbImage
from pipelines.steps import PartCoroutine
from pipelines.types import Sigmas


@dataclass(frozen=True, slots=True)
class InitLatents:
    """An init image as latents."""

    latents: Tensor  # (4, h, w) in float32
    mask: Tensor | None = None  # how much each latent may change, (1, h, w), 0 to 1; None: all may
    inpaint_channels: Tensor | None = None  # an inpainting network's extra input, (5, h, w)

    def add_noise(self, amount: float, seed: int) -> Tensor:
        """Return the latents with NAI's `noise` added: an absolute amount, drawn from a seed of its own.

        The seed may be the image's own too, so the noise is the generator's second draw; the first is the image's
        starting noise.
        """
        if not amount:
            return self.latents
        generator = torch.Generator().manual_seed(seed)
        _, noise = torch.randn((2, *self.latents.shape), generator=generator)
        return self.latents + amount * noise.to(self.latents)

    def latent_blend(self, noise: Tensor, sigmas: Sigmas) -> LatentBlend | None:
        """Return the blend that keeps the unmasked image under an ordinary network, if there is a mask."""
        if self.mask is None or self.inpaint_channels is not None:
            return None
        return LatentBlend(self.latents, noise, self.mask, sigmas)


def encode_image(image: RgbImage, vae: VaeCodec, device: torch.device) -> PartCoroutine[InitLatents]:
    """Encode an image without a mask."""
    return InitLatents((yield from vae.encode_tiles(to_tensor(image).to(device))))


def encode_init_image(
    init: InitImage, vae: VaeCodec, inpaints: bool, device: torch.device
) -> PartCoroutine[InitLatents]:
    """Encode an init image and its mask, which goes to an inpainting network if one is loaded (`inpaints`)."""
    image = to_tensor(init.image).to(device)
    latents = yield from vae.encode_tiles(image)
    if init.mask is None:
        return InitLatents(latents)
    levels = torch.frombuffer(bytearray(init.mask), dtype=torch.uint8)
    mask = levels.view(1, *latents.shape[1:]).to(device).float() / 255
    if not inpaints:
        return InitLatents(latents, mask)
    erased = yield from vae.encode_tiles(erase_masked(image, mask))
    return InitLatents(latents, mask, build_inpaint_channels(mask, erased))
