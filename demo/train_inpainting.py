"""Trains the demo's inpainting UNet from its model file: `python -m demo.train_inpainting FOLDER`.

Beside the noisy latents it sees the mask and the latents of the picture without what the mask hides (Rombach et al.
2022); what is to be there, the caption says. The text encoders stay as they are. It need not begin anew when the model
has gone on learning: `--start` takes what `naiad merge-inpaint` makes of the old inpainting UNet, the new model and the
old one.
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


def infill_image(pipeline: Pipeline, picture: Pixels, mask: Mask, job: Job) -> Pixels:
    """A picture with what the mask (height / 8, width / 8) hides drawn anew, laid over the old one.

    Args:
        pipeline: of a model with an inpainting UNet beside it.
    """
    own = RgbImage(job.width, job.height, picture.tobytes())
    source = InitImage(own, strength=1.0, mask=(mask * np.uint8(255)).tobytes(), overlay="hard")
    return pipeline.run(replace(job, source=source))[0]


def generate_samples(pipeline: Pipeline, size: tuple[int, int]) -> Image.Image:
    """Pictures of the generator, each beside itself with its middle drawn anew by a caption that says otherwise."""
    tiles: list[Pixels] = []
    mask = np.zeros((size[1] // 8, size[0] // 8), bool)
    mask[len(mask) // 8 : -len(mask) // 8, mask.shape[1] // 8 : -mask.shape[1] // 8] = True
    for number, change in enumerate(NEW_TAGS):
        scene, rng = make_scene(size, 90_000 + number)
        picture = scene.draw(*size, rng)
        who = "no humans" if number >= 4 else "1girl, solo"
        job = build_job(f"{who}, {change}, {scene.background} background", size, seed=number)
        tiles += [picture, infill_image(pipeline, picture, mask, job)]
    return Image.fromarray(make_grid(tiles, 4))


def main() -> None:
    """Train, writing a checkpoint, the model file and sheets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--start", type=Path, help="a model with 4 or 9 channels to begin as; else --model")
    parser.add_argument("--steps", type=int, default=STAGE.steps)
    parser.add_argument("--quick", action="store_true", help="in bfloat16, for processors that have it")
    arguments = parser.parse_args()
    join_processes()
    torch.manual_seed(9)
    model, vae = load_model(arguments.start or arguments.model, channels=9)
    model.language.requires_grad_(False)
    cast("Any", model).to(memory_format=torch.channels_last)
    lessons = BatchLoss(
        STAGE,
        partial(build_latent_cache, arguments.folder, vae=vae, with_masks=True),
        in_bfloat16=arguments.quick,
    )
    file = arguments.folder / INPAINTING.name

    def show(average: nn.Module, step: int) -> None:
        write_checkpoint(file, demo_architecture(9), [cast("Any", average).unet.state_dict()])
        pipeline = Pipeline(load_weights(arguments.model, inpainting=file))
        generate_samples(pipeline, (256, 256)).save(arguments.folder / f"inpainting-{step}.png")

    checkpoint = arguments.folder / "inpainting.pt"
    course = TrainConfig(
        checkpoint,
        arguments.steps,
        STAGE.learning_rate,
        average_steps=200,
        sample_every=300,
        build_optimizers=build_muon,
    )
    train(model, course, partial(lessons.compute, model), show)


if __name__ == "__main__":
    main()
