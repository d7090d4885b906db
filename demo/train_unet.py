"""Trains the demo's UNet and text encoders: `python -m demo.train_unet FOLDER`, after `demo.train_vae FOLDER`.

Training goes from small images to the full sizes. Each stage starts from the averaged weights of the previous one.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import nn

from demo.batches import BatchLoss, SizeGroup, Stage
from demo.captions import GOOD_TAGS, random_scene, write_caption
from demo.checkpoint import DEMO
from demo.distributed import join_processes
from demo.latents import build_latent_cache
from demo.model import DemoModel, as_served, load_model, save_model
from demo.muon import build_muon
from demo.pooled import train_pooled
from demo.scenes import make_grid
from demo.text_encoders import split_captions
from demo.train_vae import load_vae
from demo.training_loop import TrainConfig, load_average, train
from pipelines.job import Guidance, Job, Pass, Prompts
from pipelines.pipeline import Pipeline
from pipelines.text.tokens import Chunk
from pipelines.types import Size
from pipelines.weights.load import load_weights

SMALL = dict.fromkeys(((128, 128), (96, 160), (160, 96)), 6000)
QUARTER = dict.fromkeys(((256, 256), (224, 320), (320, 224)), 1500)
HALF = dict.fromkeys(((512, 512), (416, 608), (608, 416), (512, 768), (768, 512)), 600)
FULL = dict.fromkeys(((832, 1216), (1216, 832), (1024, 1024)), 150)
REDUCED = [dict.fromkeys(sizes, count) for sizes, count in ((QUARTER, 800), (HALF, 240), (FULL, 60))]
HARD_TAGS = {"apple": 6, "flower": 4, "cat": 4, "house": 4, "heart": 2, "glasses": 2.5}
"""Tags that are still generated badly when all others are correct."""
OUTLINE_TAGS = {"cat": 5, "apple": 4} | dict.fromkeys(("heart", "moon", "glasses"), 3)
OUTLINE_TAGS |= dict.fromkeys(("house", "star", "triangle", "circle"), 2)
"""Tags with bent outlines in large images before deep shrink let the UNet see them as one."""
STAGES = {
    "small": Stage((SizeGroup(SMALL, 32),), 1600, 5e-3),
    "quarter": Stage((SizeGroup(QUARTER, 16),), 4000, 5e-3),
    "half": Stage((SizeGroup(HALF, 6),), 2000, 3e-3),
    "both": Stage((SizeGroup(QUARTER, 8), SizeGroup(HALF, 5)), 5200, 3e-3, high_noise_share=0.75),
    "full": Stage(
        (SizeGroup(QUARTER, 4), SizeGroup(HALF, 3), SizeGroup(FULL, 2)), 1327, 2e-3, high_noise_share=0.75
    ),
    "last": Stage(
        (SizeGroup(REDUCED[0], 8), SizeGroup(REDUCED[1], 5), SizeGroup(REDUCED[2], 1)),
        750,
        1.2e-3,
        high_noise_share=0.4,
    ),
    "hard": Stage(
        (SizeGroup(REDUCED[0], 16), SizeGroup(REDUCED[1], 4), SizeGroup(REDUCED[2], 1, every=3)),
        1100,
        1.8e-3,
        high_noise_share=0.4,
        tag_weights=HARD_TAGS,
    ),
    "whole": Stage(
        (SizeGroup(REDUCED[0], 10), SizeGroup(REDUCED[1], 6), SizeGroup(REDUCED[2], 1, every=2)),
        1000,
        1.8e-3,
        high_noise_share=0.4,
        tag_weights=HARD_TAGS | OUTLINE_TAGS,
    ),
    "large": Stage(
        (SizeGroup(REDUCED[0], 6), SizeGroup(REDUCED[1], 4), SizeGroup(REDUCED[2], 2)),
        1150,
        1.6e-3,
        high_noise_share=0.4,
        pooled_only_share=0.15,
        tag_weights=HARD_TAGS | OUTLINE_TAGS,
    ),
    "fine": Stage(
        (SizeGroup(REDUCED[0], 4), SizeGroup(REDUCED[1], 4), SizeGroup(dict.fromkeys(FULL, 90), 3)),
        1100,
        1.6e-3,
        high_noise_share=0.4,
        pooled_only_share=0.15,
        tag_weights=HARD_TAGS | OUTLINE_TAGS | {"full": 1.5, "dark": 0.25},
    ),
    "pairs": Stage(
        (SizeGroup(REDUCED[0], 8), SizeGroup(REDUCED[1], 4), SizeGroup(dict.fromkeys(FULL, 90), 2)),
        1000,
        1.6e-3,
        high_noise_share=0.4,
        pooled_only_share=0.15,
        tag_weights=HARD_TAGS | OUTLINE_TAGS | {"2girls": 3, "2boys": 3},
    ),
}
POOLED_STAGE = "large"
"""The stage from which the UNet uses the pooled vector; before, it ignored it."""
QUALITY = ", ".join(GOOD_TAGS[:4])
UNDESIRED = "lowres, jpeg artifacts, worst quality, watermark, blurry, very displeasing"
SAMPLE_PROMPTS = (
    "1girl, solo, red hair, long hair, blue eyes, smile, white background, upper body",
    "1boy, solo, green hair, short hair, brown eyes, glasses, yellow shirt, blue background, full body",
    "1girl, solo, blonde hair, twintails, green eyes, open mouth, black background, hat, chibi",
    "2girls, pink hair, blue hair, red background, upper body",
    "no humans, red heart, white background",
    "no humans, 2 stars, yellow star, black background",
    "no humans, blue cat, orange background, flat color",
    "1girl, solo, purple hair, ponytail, green eyes, smile, yellow shirt, hat, upper body, looking at viewer, "
    "outdoors, city, depth of field, beautiful detailed face, jewelry, earrings, necklace, wind, floating hair, "
    "hand on own hip, official art, dynamic angle, cinematic lighting, film grain, 8k, grey background, sketch",
)
"""The last one is long, and most of its tags never occurred in training, like prompts written for larger models."""


def build_job(prompt: str, size: Size, seed: int = 7, steps: int = 20) -> Job:
    """Return a job like a user's, with quality tags and undesired content."""
    prompts = Prompts(f"{prompt}, {QUALITY}", UNDESIRED)
    passes = (as_served(Pass(*size, (seed,))),)
    return Job("demo", prompts, steps, "k_euler", "native", Guidance(5.0), passes)


def generate_samples(file: Path, size: Size, prompts: Sequence[str] = SAMPLE_PROMPTS) -> Image.Image:
    """Return a grid, four images wide, of the prompts generated with a model file."""
    pipeline = Pipeline(load_weights(file, device="cpu"))
    return Image.fromarray(
        make_grid([pipeline.run(build_job(prompt, size)).images[0] for prompt in prompts], 4)
    )


def random_captions(count: int) -> list[tuple[Chunk, ...]]:
    """Return random captions, split into chunks, the same ones every time."""
    rng = np.random.default_rng(256)
    return split_captions([write_caption(random_scene(rng), rng) for _ in range(count)], max_chunks=1)


def main() -> None:
    """Train the given stages, or all of them in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of checkpoints, cached latents and samples")
    parser.add_argument(
        "--stages", nargs="*", default=list(STAGES), choices=list(STAGES), help="default: all"
    )
    parser.add_argument(
        "--quick", action="store_true", help="compute in bfloat16, for processors with hardware support"
    )
    arguments = parser.parse_args()
    join_processes()
    for name in arguments.stages:
        train_stage(arguments.folder, name, arguments.quick)


def load_previous(checkpoint: Path) -> DemoModel:
    """Load the result of the previous stage or, without its checkpoint, the model in the repository."""
    return load_average(checkpoint, DemoModel()) if checkpoint.exists() else load_model(DEMO)[0]


def train_stage(folder: Path, name: str, in_bfloat16: bool = False) -> None:
    """Train one stage, from its checkpoint or from the previous stage."""
    stage, vae, checkpoint = STAGES[name], load_vae(folder), folder / f"unet-{name}.pt"
    index = list(STAGES).index(name)
    torch.manual_seed(index)
    if index and not checkpoint.exists():
        model = load_previous(folder / f"unet-{list(STAGES)[index - 1]}.pt")
        if name == POOLED_STAGE:
            train_pooled(model.language)
        model.requires_grad_(True).train().center_pooled(random_captions(256))
        if name == POOLED_STAGE:
            model.enable_pooled()
    else:
        model = DemoModel()
    cast("Any", model).to(memory_format=torch.channels_last)
    loss = BatchLoss(stage, partial(build_latent_cache, folder, vae=vae), in_bfloat16=in_bfloat16)
    sample_size = max(stage.list_sizes(), key=lambda size: (size[0] == size[1], size))

    def save_samples(average: nn.Module, step: int) -> None:
        file = folder / "naiad-demo.safetensors"
        save_model(cast("DemoModel", average), vae, file)
        generate_samples(file, sample_size).save(folder / f"unet-{name}-{step}.png")

    config = TrainConfig(
        checkpoint,
        stage.steps,
        stage.learning_rate,
        average_steps=300,
        sample_every=1000,
        build_optimizers=build_muon,
    )
    train(model, config, partial(loss.compute, model), save_samples)


if __name__ == "__main__":
    main()
