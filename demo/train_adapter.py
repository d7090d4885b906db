"""Trains the demo's image adapter beside its UNet: `python -m demo.train_adapter FOLDER`, after `demo.train_encoder`.

A reference is another drawing of the scene that is to be drawn, and the caption says little: what is left untold,
the colors above all, has to be seen. The UNet and the text encoders stay as they are.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from demo.adapter import Adapter, load_adapter, preprocess, save_adapter
from demo.batches import BatchLoss, SizeGroup, Stage
from demo.checkpoint import DEMO, VIBE
from demo.distributed import join_processes
from demo.latents import build_latent_cache, make_scene
from demo.model import DemoModel, load_model
from demo.muon import build_muon
from demo.samples import REFERENCE_SIZES, SampleImages
from demo.scenes import Scene, make_grid
from demo.train_encoder import load_encoder
from demo.train_unet import REDUCED, build_job
from demo.training_loop import TrainConfig, train
from pipelines.job import Job
from pipelines.pipeline import Pipeline
from pipelines.types import Pixels, Size
from pipelines.weights.load import Weights, load_weights
from pipelines.weights.networks import UNet

STAGE = Stage(
    (SizeGroup(REDUCED[0], 16), SizeGroup(REDUCED[1], 3, every=2)), 3200, 1.5e-3, high_noise_share=0.4
)
TAG_RATE = 0.3
DROP_RATE = 0.05
"""How many references are withheld, for guidance."""


class UNetWithReference:
    """A UNet with an adapter installed that sees one reference, but for rows that are to see nothing.

    Args:
        seen: tokens (1, 8, width) for the first of every two rows, the prompt's; `nothing` for the other.
    """

    def __init__(self, unet: UNet, seen: Tensor, nothing: Tensor) -> None:
        self._unet, self._tokens = unet, torch.cat([seen, nothing])

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        context: Tensor,
        added_cond_kwargs: Mapping[str, Tensor] | None,
        halvings: int = 0,
    ) -> Tensor:
        """See UNet."""
        tokens = self._tokens[: len(sample)]
        return self._unet(sample, timestep, cast("Any", (context, [tokens])), added_cond_kwargs, halvings)


def generate_from_reference(
    weights: Weights, adapter: Adapter, reference: Pixels, job: Job, strength: float
) -> Pixels:
    """A picture drawn with an eye on a reference of at most 224 pixels a side; the weights' UNet is changed."""
    adapter.install(cast("Any", weights.unet).module, strength)
    with torch.inference_mode():
        seen = adapter(preprocess(reference)[None])
        looking = UNetWithReference(weights.unet, seen, adapter.empty_tokens(1))
    return Pipeline(replace(weights, unet=looking)).run(job)[0]


def generate_samples(weights: Weights, adapter: Adapter, size: Size) -> Image.Image:
    """References, each beside a picture that knows it and one that does not."""
    tiles: list[Pixels] = []
    for number in range(4):
        scene, rng = make_scene(size, 90_000 + number)
        reference = scene.draw(*REFERENCE_SIZES[0], rng)
        job = build_job(", ".join(scene.count_tags()), size, seed=number)
        drawn = [
            generate_from_reference(weights, adapter, reference, job, strength) for strength in (1.0, 0.0)
        ]
        tiles += [scene.draw(*size, rng), *drawn]
    return Image.fromarray(make_grid(tiles, 6))


def build_adapter(folder: Path, model: DemoModel) -> Adapter:
    """An adapter with the encoder that was trained in a folder."""
    adapter, knowing = Adapter(model.unet), load_encoder(folder)
    adapter.encoder.load_state_dict(knowing.encoder.state_dict())
    adapter.projection.load_state_dict(knowing.projection.state_dict())
    return adapter


def main() -> None:
    """Train, writing a checkpoint, the adapter's file and sheets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument(
        "--start", type=Path, help="an adapter to go on from; else the encoder trained in the folder"
    )
    parser.add_argument("--steps", type=int, default=STAGE.steps)
    parser.add_argument("--quick", action="store_true", help="in bfloat16, for processors that have it")
    arguments = parser.parse_args()
    join_processes()
    torch.manual_seed(11)
    rng, gallery = np.random.default_rng(11), SampleImages(11)
    model, vae = load_model(arguments.model)
    model.requires_grad_(False)
    adapter = (
        load_adapter(arguments.start, model.unet)
        if arguments.start
        else build_adapter(arguments.folder, model)
    )
    adapter.requires_grad_(True).train()
    adapter.install(model.unet)
    cast("Any", model).to(memory_format=torch.channels_last)
    lessons = BatchLoss(
        STAGE,
        partial(build_latent_cache, arguments.folder, vae=vae),
        tag_rate=TAG_RATE,
        in_bfloat16=arguments.quick,
    )

    def look(scenes: Sequence[Scene]) -> Tensor:
        seen = adapter(gallery(scenes))
        withheld = torch.from_numpy(rng.random(len(scenes)) < DROP_RATE)[:, None, None]
        return torch.where(withheld, adapter.empty_tokens(len(scenes)), seen)

    def show(average: nn.Module, step: int) -> None:
        save_adapter(cast("Adapter", average), arguments.folder / VIBE.name)
        sheet_of = generate_samples(load_weights(arguments.model), cast("Adapter", average), (256, 256))
        sheet_of.save(arguments.folder / f"adapter-{step}.png")

    file = arguments.folder / "adapter.pt"
    course = TrainConfig(
        file,
        arguments.steps,
        STAGE.learning_rate,
        average_steps=200,
        sample_every=300,
        build_optimizers=build_muon,
    )
    train(adapter, course, partial(lessons.compute, model, encode_references=look), show)


if __name__ == "__main__":
    main()
