"""Scenes drawn and encoded in advance, a file for each size: what the UNets are trained on."""

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
    """The scenes of one size, in half precision.

    Attributes:
        latents: (N, 4, h, w), scaled.
        around: for inpainting (N, 5, h, w), the masks and the latents of the pictures without what they hide.
    """

    size: Size
    scenes: Sequence[Scene]
    latents: Tensor
    inpaint_channels: Tensor | None = None

    def select_latents(self, chosen: Sequence[int]) -> Tensor:
        """Some scenes' latents (B, 4, h, w) in float32."""
        return self.latents[torch.as_tensor(chosen)].float()

    def select_size_ids(self, chosen: Sequence[int]) -> Tensor:
        """Their size ids (B, 6)."""
        return torch.tensor([choose_view(self.size, k).size_ids() for k in chosen], dtype=torch.float32)

    def append_inpaint_channels(self, noisy: Tensor, chosen: Sequence[int]) -> Tensor:
        """A network's whole input: the noisy latents, and beside them what is around the masks."""
        if self.inpaint_channels is None:
            return noisy
        return torch.cat([noisy, self.inpaint_channels[torch.as_tensor(chosen)].float()], dim=1)


def draw_image(size: Size, number: int) -> tuple[Pixels, np.random.Generator]:
    """The picture of a number, and the generator that drew it."""
    scene, rng = make_scene(size, number)
    return choose_view(size, number).draw(scene, rng), rng


def make_scene(size: Size, number: int) -> tuple[Scene, np.random.Generator]:
    """The scene of a number, always the same, and the generator that draws it."""
    rng = np.random.default_rng([*size, number])
    return random_scene(rng), rng


def build_latent_cache(
    folder: Path, size: Size, count: int, vae: AutoencoderKL, with_masks: bool = False
) -> LatentCache:
    """The first `count` scenes of a size, drawn and encoded unless a file has them already."""

    def whole(number: int) -> Tensor:
        return encode_image(vae, to_tensor(draw_image(size, number)[0]))

    def cut(number: int) -> Tensor:
        picture, rng = draw_image(size, number)
        change = torch.from_numpy(random_mask(size[1] // 8, size[0] // 8, rng))[None].float()
        return build_inpaint_channels(change, encode_image(vae, erase_masked(to_tensor(picture), change)))

    named = f"{size[0]}x{size[1]}.safetensors"
    latents = _load_or_make(folder / f"latents-{named}", count, whole)
    beside = _load_or_make(folder / f"around-{named}", count, cut) if with_masks else None
    return LatentCache(size, [make_scene(size, number)[0] for number in range(count)], latents, beside)


def _load_or_make(file: Path, count: int, make: Callable[[int], Tensor]) -> Tensor:
    """The first `count` tensors of a file, which grows by those that it lacks."""
    found = list(load_file(file)["latents"]) if file.exists() else []
    missing = range(len(found), count)
    if missing:
        found += [make(number).half() for number in tqdm(missing, desc=file.stem, mininterval=10)]
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"latents": torch.stack(found)}, file)
    return torch.stack(found[:count])


@torch.inference_mode()
def encode_image(vae: AutoencoderKL, picture: Tensor) -> Tensor:
    """A picture's (3, 8h, 8w) scaled latents (4, h, w)."""
    batch = picture[None].to(memory_format=torch.channels_last)
    return cast("Any", vae.encode(batch)).latent_dist.mode()[0] * LATENT_SCALE
