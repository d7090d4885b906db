"""Trains the demo's image adapter: `python -m demo.train_adapter FOLDER`, after `demo.train_encoder`.

The reference is another drawing of the scene to predict, and captions have few tags, so the others, above all colors,
must come from the reference. UNet and text encoders are frozen.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from demo.adapter import Adapter, load_adapter, save_adapter
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
from pipelines.adapters.vibe import load_vibe
from pipelines.job import Job, RgbImage, Vibe
from pipelines.pipeline import Pipeline
from pipelines.types import Pixels, Size
from pipelines.weights.load import load_weights
from pipelines.weights.networks import TorchUNet

STAGE = Stage(
    (SizeGroup(REDUCED[0], 16), SizeGroup(REDUCED[1], 3, every=2)), 3200, 1.5e-3, high_noise_share=0.4
)
TAG_RATE = 0.3
"""Share of the tags that captions keep."""
DROP_RATE = 0.05
"""Share of samples without a reference, for guidance."""


def load_pipeline(model: Path, adapter: Path) -> Pipeline:
    """Return a pipeline with an adapter, as the server loads it."""
    weights = load_weights(model)
    unet = cast("TorchUNet", weights.unet)
    return Pipeline(weights, vibe=load_vibe(adapter, None, [unet], weights.device, weights.dtype))


def generate_from_references(
    pipeline: Pipeline, references: Sequence[Pixels], job: Job, *strengths: float
) -> Pixels:
    """Generate an image from references, each with its strength."""
    vibes = (
        Vibe(RgbImage(pixels.shape[1], pixels.shape[0], pixels.tobytes()), strength)
        for pixels, strength in zip(references, strengths, strict=True)
    )
    return pipeline.run(replace(job, vibes=tuple(vibes))).images[0]


def generate_samples(pipeline: Pipeline, size: Size) -> Image.Image:
    """Return a grid of four scenes, each followed by images generated with the adapter and without it."""
    tiles: list[Pixels] = []
    for number in range(4):
        scene, rng = make_scene(size, 90_000 + number)
        reference = scene.draw(*REFERENCE_SIZES[0], rng)
        job = build_job(", ".join(scene.count_tags()), size, seed=number)
        generated = [generate_from_references(pipeline, [reference], job, scale) for scale in (1.0, 0.0)]
        tiles += [scene.draw(*size, rng), *generated]
    return Image.fromarray(make_grid(tiles, 6))


def build_adapter(folder: Path, model: DemoModel) -> Adapter:
    """Return an adapter with the encoder and projection that were trained in a folder."""
    adapter, trained = Adapter(model.unet), load_encoder(folder)
    adapter.encoder.load_state_dict(trained.encoder.state_dict())
    adapter.projection.load_state_dict(trained.projection.state_dict())
    return adapter


def main() -> None:
    """Train, writing checkpoints, the adapter file and sample grids."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of checkpoints, cached latents and samples")
    parser.add_argument("--model", type=Path, default=DEMO, help="model file (default: the repository's)")
    parser.add_argument(
        "--start", type=Path, help="adapter file to continue from (default: the encoder trained in FOLDER)"
    )
    parser.add_argument("--steps", type=int, default=STAGE.steps, help="total number of steps")
    parser.add_argument(
        "--quick", action="store_true", help="compute in bfloat16, for processors with hardware support"
    )
    arguments = parser.parse_args()
    join_processes()
    torch.manual_seed(11)
    rng, references = np.random.default_rng(11), SampleImages(11)
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
    load_cache = partial(build_latent_cache, arguments.folder, vae=vae)
    loss = BatchLoss(STAGE, load_cache, TAG_RATE, arguments.quick)

    def encode_references(scenes: Sequence[Scene]) -> Tensor:
        tokens = adapter(references(scenes))
        is_dropped = torch.from_numpy(rng.random(len(scenes)) < DROP_RATE)[:, None, None]
        return torch.where(is_dropped, adapter.empty_tokens(len(scenes)), tokens)

    def save_samples(average: nn.Module, step: int) -> None:
        file = arguments.folder / VIBE.name
        save_adapter(cast("Adapter", average), file)
        grid = generate_samples(load_pipeline(arguments.model, file), (256, 256))
        grid.save(arguments.folder / f"adapter-{step}.png")

    config = TrainConfig(
        arguments.folder / "adapter.pt",
        arguments.steps,
        STAGE.learning_rate,
        average_steps=200,
        sample_every=300,
        build_optimizers=build_muon,
    )
    train(adapter, config, partial(loss.compute, model, encode_references=encode_references), save_samples)


if __name__ == "__main__":
    main()
