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
from demo.latents import scene_of, shelf
from demo.model import DemoModel, opened
from demo.muon import muon
from demo.samples import FORMS, SamplePictures
from demo.scenes import Scene, make_grid
from demo.train_encoder import trained_encoder
from demo.train_unet import FEWER, asked
from demo.training_loop import TrainConfig, learn
from pipelines.job import Job
from pipelines.pipeline import Pipeline
from pipelines.types import Pixels, Size
from pipelines.weights.load import Weights, load_weights
from pipelines.weights.networks import UNet

STAGE = Stage((SizeGroup(FEWER[0], 16), SizeGroup(FEWER[1], 3, every=2)), 3200, 1.5e-3, high_noise_share=0.4)
TOLD = 0.3
UNSEEN = 0.05
"""How many references are withheld, for guidance."""


class Looking:
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


def after(weights: Weights, adapter: Adapter, reference: Pixels, job: Job, strength: float) -> Pixels:
    """A picture drawn with an eye on a reference of at most 224 pixels a side; the weights' UNet is changed."""
    adapter.install(cast("Any", weights.unet).module, strength)
    with torch.inference_mode():
        seen = adapter(preprocess(reference)[None])
        looking = Looking(weights.unet, seen, adapter.empty_tokens(1))
    return Pipeline(replace(weights, unet=looking)).run(job)[0]


def draw_sheet(weights: Weights, adapter: Adapter, size: Size) -> Image.Image:
    """References, each beside a picture that knows it and one that does not."""
    tiles: list[Pixels] = []
    for number in range(4):
        scene, rng = scene_of(size, 90_000 + number)
        reference = scene.draw(*FORMS[0], rng)
        job = asked(", ".join(scene.count_tags()), size, seed=number)
        drawn = [after(weights, adapter, reference, job, strength) for strength in (1.0, 0.0)]
        tiles += [scene.draw(*size, rng), *drawn]
    return Image.fromarray(make_grid(tiles, 6))


def begun(folder: Path, model: DemoModel) -> Adapter:
    """An adapter with the encoder that was trained in a folder."""
    adapter, knowing = Adapter(model.unet), trained_encoder(folder)
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
    rng, gallery = np.random.default_rng(11), SamplePictures(11)
    model, vae = opened(arguments.model)
    model.requires_grad_(False)
    adapter = load_adapter(arguments.start, model.unet) if arguments.start else begun(arguments.folder, model)
    adapter.requires_grad_(True).train()
    adapter.install(model.unet)
    cast("Any", model).to(memory_format=torch.channels_last)
    lessons = BatchLoss(
        STAGE, partial(shelf, arguments.folder, vae=vae), tag_rate=TOLD, in_bfloat16=arguments.quick
    )

    def look(scenes: Sequence[Scene]) -> Tensor:
        seen = adapter(gallery(scenes))
        withheld = torch.from_numpy(rng.random(len(scenes)) < UNSEEN)[:, None, None]
        return torch.where(withheld, adapter.empty_tokens(len(scenes)), seen)

    def show(average: nn.Module, step: int) -> None:
        save_adapter(cast("Adapter", average), arguments.folder / VIBE.name)
        sheet_of = draw_sheet(load_weights(arguments.model), cast("Adapter", average), (256, 256))
        sheet_of.save(arguments.folder / f"adapter-{step}.png")

    file = arguments.folder / "adapter.pt"
    course = TrainConfig(
        file, arguments.steps, STAGE.learning_rate, memory=200, show_every=300, optimizers=muon
    )
    learn(adapter, course, partial(lessons.compute, model, encode_references=look), show)


if __name__ == "__main__":
    main()
