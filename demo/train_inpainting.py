"""Trains the demo's inpainting UNet from its model file: `python -m demo.train_inpainting FOLDER`.

Besides the noisy latents it takes the mask and the latents of the masked image (Rombach et al. 2022). The text encoders
are frozen. After further training of the model it need not start from scratch: `--start` accepts the result of
`naiad merge-inpaint` for the old inpainting UNet, the new model and the old one.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import nn

from demo.architecture import demo_architecture
from demo.batches import BatchLoss, SizeGroup, Stage
from demo.checkpoint import DEMO, INPAINTING, write_checkpoint
from demo.distributed import join_processes
from demo.latents import build_latent_cache, make_scene
from demo.masks import Mask
from demo.model import load_model
from demo.muon import build_muon
from demo.scenes import make_grid
from demo.train_unet import HALF, HARD_TAGS, QUARTER, build_job
from demo.training_loop import TrainConfig, train
from pipelines.job import InitImage, Job, RgbImage
from pipelines.pipeline import Pipeline
from pipelines.types import Pixels
from pipelines.weights.load import load_weights

SMALLER, LARGER = dict.fromkeys(QUARTER, 800), dict.fromkeys(HALF, 60)
STAGE = Stage(
    (SizeGroup(SMALLER, 10), SizeGroup(LARGER, 3)), 400, 1.5e-3, high_noise_share=0.4, tag_weights=HARD_TAGS
)
NEW_TAGS = ("red hair", "green hair", "hat", "glasses", "red heart", "yellow star", "blue cat", "green apple")
"""Tags of the sample images, first of characters, then of shapes."""


def infill_image(pipeline: Pipeline, pixels: Pixels, mask: Mask, job: Job) -> Pixels:
    """Replace the masked part of an image and overlay the result on the original.

    Args:
        pipeline: Pipeline of a model with an inpainting UNet.
        mask: Mask at latent resolution (height / 8, width / 8).
    """
    image = RgbImage(job.passes[0].width, job.passes[0].height, pixels.tobytes())
    init_image = InitImage(image, (mask * np.uint8(255)).tobytes(), overlay="hard")
    pass_ = replace(job.passes[0], init=init_image)
    return pipeline.run(replace(job, passes=(pass_,))).images[0]


def generate_samples(pipeline: Pipeline, size: tuple[int, int]) -> Image.Image:
    """Return a grid of drawings, each followed by itself with its middle replaced according to one of NEW_TAGS."""
    tiles: list[Pixels] = []
    mask = np.zeros((size[1] // 8, size[0] // 8), bool)
    mask[len(mask) // 8 : -len(mask) // 8, mask.shape[1] // 8 : -mask.shape[1] // 8] = True
    for number, tag in enumerate(NEW_TAGS):
        scene, rng = make_scene(size, 90_000 + number)
        drawing = scene.draw(*size, rng)
        count = "no humans" if number >= 4 else "1girl, solo"
        job = build_job(f"{count}, {tag}, {scene.background} background", size, seed=number)
        tiles += [drawing, infill_image(pipeline, drawing, mask, job)]
    return Image.fromarray(make_grid(tiles, 4))


def main() -> None:
    """Train, writing checkpoints, the model file and sample grids."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of checkpoints, cached latents and samples")
    parser.add_argument("--model", type=Path, default=DEMO, help="model file (default: the repository's)")
    parser.add_argument(
        "--start", type=Path, help="model file with 4 or 9 channels to start from (default: --model)"
    )
    parser.add_argument("--steps", type=int, default=STAGE.steps, help="total number of steps")
    parser.add_argument(
        "--quick", action="store_true", help="compute in bfloat16, for processors with hardware support"
    )
    arguments = parser.parse_args()
    join_processes()
    torch.manual_seed(9)
    model, vae = load_model(arguments.start or arguments.model, channels=9)
    model.language.requires_grad_(False)
    cast("Any", model).to(memory_format=torch.channels_last)
    load_cache = partial(build_latent_cache, arguments.folder, vae=vae, with_masks=True)
    loss = BatchLoss(STAGE, load_cache, in_bfloat16=arguments.quick)
    file = arguments.folder / INPAINTING.name

    def save_samples(average: nn.Module, step: int) -> None:
        write_checkpoint(file, demo_architecture(9), [cast("Any", average).unet.state_dict()])
        pipeline = Pipeline(load_weights(arguments.model, inpainting=file))
        generate_samples(pipeline, (256, 256)).save(arguments.folder / f"inpainting-{step}.png")

    config = TrainConfig(
        arguments.folder / "inpainting.pt",
        arguments.steps,
        STAGE.learning_rate,
        average_steps=200,
        sample_every=300,
        build_optimizers=build_muon,
    )
    train(model, config, partial(loss.compute, model), save_samples)


if __name__ == "__main__":
    main()
