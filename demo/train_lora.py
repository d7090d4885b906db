"""Trains the demo's LoRA, the palette of a cyanotype: `python -m demo.train_lora FOLDER`.

Pictures are drawn as for the model and their tones mapped to the palette; captions do not mention it, so the LoRA alone
brings it. Ten minutes on two cores.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from demo.batches import BatchLoss, SizeGroup, Stage
from demo.checkpoint import CYANOTYPE_LORA, DEMO
from demo.latents import build_latent_cache
from demo.model import DemoModel, load_model
from demo.palette import CYANOTYPE
from demo.scenes import make_grid
from demo.train_unet import SAMPLE_PROMPTS, build_job
from demo.training_loop import TrainConfig, train
from pipelines.job import Lora
from pipelines.pipeline import Pipeline
from pipelines.types import Pixels
from pipelines.weights.checkpoint import UNET_PREFIX, fingerprint
from pipelines.weights.key_map import map_unet_keys
from pipelines.weights.load import load_weights

RANK = 4
STAGE = Stage(
    (SizeGroup(dict.fromkeys(((256, 256), (224, 320), (320, 224)), 56), 8),),
    600,
    3e-3,
    high_noise_share=0.3,
)


class LowRank(nn.Module):
    """A parametrization that adds the product of two small matrices to a weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        self.up = nn.Parameter(torch.zeros(rows, RANK))
        self.down = nn.Parameter(torch.randn(RANK, columns) * columns**-0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the changed weight."""
        return weight + (self.up @ self.down).view_as(weight)


def to_cyanotype(image: Pixels) -> Pixels:
    """Map the tones of an image to those of a cyanotype, by luma (Rec. 601)."""
    luma = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    dark, light = (np.array(color, np.float32) for color in CYANOTYPE)
    return np.rint(dark + (light - dark) * luma[..., None]).astype(np.uint8)


def add_low_rank(unet: nn.Module) -> None:
    """Add a low-rank change, the only weights that learn, to all linear and convolutional layers."""
    unet.requires_grad_(False)
    for layer in [layer for layer in unet.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight))


def save_lora(unet: nn.Module, file: Path) -> None:
    """Write the changes with kohya's keys for SDXL."""
    layers = {
        name: layer for name, layer in unet.named_modules() if parametrize.is_parametrized(layer, "weight")
    }
    keys = map_unet_keys([f"{name}.weight" for name in layers], cast("Any", unet).config)
    stored: dict[str, Tensor] = {}
    for name, layer in layers.items():
        change = cast("LowRank", cast("Any", layer).parametrizations.weight[0])
        weight = cast("Tensor", layer.weight)
        key = keys[f"{name}.weight"].key.removeprefix(UNET_PREFIX).removesuffix(".weight").replace(".", "_")
        ones = (1,) * (weight.ndim - 2)
        stored[f"lora_unet_{key}.lora_down.weight"] = change.down.view(RANK, *weight.shape[1:])
        stored[f"lora_unet_{key}.lora_up.weight"] = change.up.view(-1, RANK, *ones)
        stored[f"lora_unet_{key}.alpha"] = torch.tensor(float(RANK))
    metadata = {
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.prediction_type": "v",
        "modelspec.title": "cyanotype, a LoRA for the naiad demo",
        "ss_network_module": "networks.lora",
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.detach().half().contiguous() for name, tensor in sorted(stored.items())}, file, metadata
    )


def generate_samples(model: Path, file: Path) -> Image.Image:
    """Return a grid of the sample prompts without the LoRA, and with half and all of its strength."""
    pipeline, tiles = Pipeline(load_weights(model)), list[Pixels]()
    for strength in (0.0, 0.5, 1.0):
        loras = (Lora(file.stem, file, fingerprint(file), strength, strength),)
        for prompt in SAMPLE_PROMPTS[:6]:
            job = build_job(prompt, (256, 256), steps=14)
            tiles.append(pipeline.run(replace(job, loras=loras)).images[0])
    return Image.fromarray(make_grid(tiles, 6))


def main() -> None:
    """Train, writing checkpoints, the LoRA and a grid of samples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of checkpoints, cached latents and samples")
    parser.add_argument("--model", type=Path, default=DEMO, help="model file (default: the repository's)")
    parser.add_argument("--steps", type=int, default=STAGE.steps, help="total number of steps")
    arguments = parser.parse_args()
    torch.manual_seed(5)
    model, vae = load_model(arguments.model)
    model.requires_grad_(False)
    add_low_rank(model.unet)
    loss = BatchLoss(STAGE, partial(build_latent_cache, arguments.folder, vae=vae, recolor=to_cyanotype))

    def save_samples(average: nn.Module, step: int) -> None:
        file = arguments.folder / CYANOTYPE_LORA.name
        save_lora(cast("DemoModel", average).unet, file)
        generate_samples(arguments.model, file).save(arguments.folder / f"lora-{step}.png")

    config = TrainConfig(
        arguments.folder / "lora.pt",
        arguments.steps,
        STAGE.learning_rate,
        warmup_steps=20,
        average_steps=60,
        sample_every=150,
        save_every=60,
        build_optimizers=lambda model, rate: [
            torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], rate)
        ],
    )
    train(model, config, partial(loss.compute, model), save_samples)


if __name__ == "__main__":
    main()
