"""Scenes drawn and encoded in advance, a file for each size: what the UNet is trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderKL  # pyright: ignore[reportPrivateImportUsage]
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from demo.captions import random_scene
from demo.scenes import Scene
from demo.train_vae import as_tensor

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Shelf:
    """The scenes of one size: `latents` (N, 4, height / 8, width / 8) in half precision, scaled."""

    size: Size
    scenes: Sequence[Scene]
    latents: Tensor

    def batch(self, count: int, rng: np.random.Generator) -> tuple[list[Scene], Tensor]:
        """Some scenes and their latents (count, 4, h, w) in float32."""
        chosen = rng.integers(len(self.scenes), size=count)
        return [self.scenes[k] for k in chosen], self.latents[torch.from_numpy(chosen)].float()


def scene_of(size: Size, number: int) -> tuple[Scene, np.random.Generator]:
    """The scene of a number, always the same, and the generator that draws it."""
    rng = np.random.default_rng([*size, number])
    return random_scene(rng), rng


def shelf(folder: Path, size: Size, count: int, vae: AutoencoderKL, scale: float) -> Shelf:
    """The first `count` scenes of a size, drawn and encoded unless a file has them already."""
    file = folder / f"latents-{size[0]}x{size[1]}.safetensors"
    latents = load_file(file)["latents"] if file.exists() else torch.empty(0, 4, size[1] // 8, size[0] // 8)
    missing = range(len(latents), count)
    if missing:
        fresh = [
            _encoded(size, number, vae, scale) for number in tqdm(missing, desc=file.stem, mininterval=10)
        ]
        latents = torch.cat([latents.half(), torch.stack(fresh).half()])
        save_file({"latents": latents}, file)
    return Shelf(size, [scene_of(size, number)[0] for number in range(count)], latents[:count])


@torch.inference_mode()
def _encoded(size: Size, number: int, vae: AutoencoderKL, scale: float) -> Tensor:
    scene, rng = scene_of(size, number)
    picture = as_tensor(scene.draw(*size, rng))[None].to(memory_format=torch.channels_last)
    return cast("Any", vae.encode(picture)).latent_dist.mode()[0] * scale
