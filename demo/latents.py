"""Training data of the UNets: scenes drawn and encoded once and cached in a file for each size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderKL  # pyright: ignore[reportPrivateImportUsage]
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from demo.architecture import LATENT_SCALE
from demo.captions import random_scene
from demo.masks import random_mask
from demo.scenes import Scene
from demo.train_vae import to_tensor
from demo.views import choose_view
from pipelines.image.inpainting import build_inpaint_channels, erase_masked
from pipelines.types import Pixels, Size


@dataclass(frozen=True, slots=True)
class LatentCache:
    """The scenes of one size and their latents in half precision.

    Attributes:
        latents: Scaled latents (N, 4, h, w).
        inpaint_channels: Masks and latents of the masked images (N, 5, h, w), or None without masks.
    """

    size: Size
    scenes: Sequence[Scene]
    latents: Tensor
    inpaint_channels: Tensor | None = None

    def select_latents(self, chosen: Sequence[int]) -> Tensor:
        """Return the latents (B, 4, h, w) of some scenes in float32."""
        return self.latents[torch.as_tensor(chosen)].float()

    def select_size_ids(self, chosen: Sequence[int]) -> Tensor:
        """Return the size ids (B, 6) of some scenes."""
        return torch.tensor([choose_view(self.size, k).size_ids() for k in chosen], dtype=torch.float32)

    def append_inpaint_channels(self, noisy: Tensor, chosen: Sequence[int]) -> Tensor:
        """Append the inpainting channels, if there are any, to noisy latents."""
        if self.inpaint_channels is None:
            return noisy
        return torch.cat([noisy, self.inpaint_channels[torch.as_tensor(chosen)].float()], dim=1)


def draw_image(size: Size, number: int) -> tuple[Pixels, np.random.Generator]:
    """Return the image with this number, and the random generator in its state after drawing."""
    scene, rng = make_scene(size, number)
    return choose_view(size, number).draw(scene, rng), rng


def make_scene(size: Size, number: int) -> tuple[Scene, np.random.Generator]:
    """Return the scene with this number, the same one every time, and the random generator to draw it with."""
    rng = np.random.default_rng([*size, number])
    return random_scene(rng), rng


def build_latent_cache(
    folder: Path,
    size: Size,
    count: int,
    vae: AutoencoderKL,
    with_masks: bool = False,
    recolor: Callable[[Pixels], Pixels] = lambda image: image,
) -> LatentCache:
    """Return the first `count` scenes of a size, drawing and encoding those that the files in `folder` lack.

    Args:
        recolor: changes the drawn images; a folder's files have one such function.
    """

    def encode_scene(number: int) -> Tensor:
        return encode_image(vae, to_tensor(recolor(draw_image(size, number)[0])))

    def encode_masked(number: int) -> Tensor:
        image, rng = draw_image(size, number)
        mask = torch.from_numpy(random_mask(size[1] // 8, size[0] // 8, rng))[None].float()
        return build_inpaint_channels(mask, encode_image(vae, erase_masked(to_tensor(image), mask)))

    name = f"{size[0]}x{size[1]}.safetensors"
    latents = _load_or_encode(folder / f"latents-{name}", count, encode_scene)
    channels = _load_or_encode(folder / f"around-{name}", count, encode_masked) if with_masks else None
    return LatentCache(size, [make_scene(size, number)[0] for number in range(count)], latents, channels)


def _load_or_encode(file: Path, count: int, encode: Callable[[int], Tensor]) -> Tensor:
    """Return the first `count` tensors of a file, adding missing ones to it."""
    tensors = list(load_file(file)["latents"]) if file.exists() else []
    missing = range(len(tensors), count)
    if missing:
        tensors += [encode(number).half() for number in tqdm(missing, desc=file.stem, mininterval=10)]
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"latents": torch.stack(tensors)}, file)
    return torch.stack(tensors[:count])


@torch.inference_mode()
def encode_image(vae: AutoencoderKL, image: Tensor) -> Tensor:
    """Return the scaled latents (4, h, w) of an image (3, 8h, 8w) in [-1, 1]."""
    batch = image[None].to(memory_format=torch.channels_last)
    return cast("Any", vae.encode(batch)).latent_dist.mode()[0] * LATENT_SCALE
