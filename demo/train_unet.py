"""Trains the demo's UNet and text encoders: `python -m demo.train_unet FOLDER`, after `demo.train_vae FOLDER`.

It goes from small pictures to the sizes that are served; each stage starts from the average of the one before.
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
from demo.captions import GOOD_TAGS, write_caption, random_scene
from demo.checkpoint import DEMO
from demo.distributed import join_processes
from demo.latents import shelf
from demo.model import DemoModel, as_served, opened, save
from demo.muon import muon
from demo.pooled import sum_up
from demo.scenes import make_grid
from demo.text_encoders import chunked
from demo.train_vae import trained_vae
from demo.training_loop import TrainConfig, averaged, learn
from pipelines.job import Guidance, Job, Prompts
from pipelines.pipeline import Pipeline
from pipelines.text.tokens import Chunk
from pipelines.types import Size
from pipelines.weights.load import load_weights

SMALL = dict.fromkeys(((128, 128), (96, 160), (160, 96)), 6000)
QUARTER = dict.fromkeys(((256, 256), (224, 320), (320, 224)), 1500)
HALF = dict.fromkeys(((512, 512), (416, 608), (608, 416), (512, 768), (768, 512)), 600)
FULL = dict.fromkeys(((832, 1216), (1216, 832), (1024, 1024)), 150)
FEWER = [dict.fromkeys(sizes, count) for sizes, count in ((QUARTER, 800), (HALF, 240), (FULL, 60))]
HARD = {"apple": 6, "flower": 4, "cat": 4, "house": 4, "heart": 2, "glasses": 2.5}
"""What is still drawn badly when the rest is right."""
OUTLINED = {"cat": 5, "apple": 4} | dict.fromkeys(("heart", "moon", "glasses"), 3)
OUTLINED |= dict.fromkeys(("house", "star", "triangle", "circle"), 2)
"""What had bent outlines in large pictures until deep shrink let it be seen whole."""
STAGES = {
    "small": Stage((SizeGroup(SMALL, 32),), 1600, 5e-3),
    "quarter": Stage((SizeGroup(QUARTER, 16),), 4000, 5e-3),
    "half": Stage((SizeGroup(HALF, 6),), 2000, 3e-3),
    "both": Stage((SizeGroup(QUARTER, 8), SizeGroup(HALF, 5)), 5200, 3e-3, high_noise_share=0.75),
    "full": Stage(
        (SizeGroup(QUARTER, 4), SizeGroup(HALF, 3), SizeGroup(FULL, 2)), 1327, 2e-3, high_noise_share=0.75
    ),
    "last": Stage(
        (SizeGroup(FEWER[0], 8), SizeGroup(FEWER[1], 5), SizeGroup(FEWER[2], 1)),
        750,
        1.2e-3,
        high_noise_share=0.4,
    ),
    "hard": Stage(
        (SizeGroup(FEWER[0], 16), SizeGroup(FEWER[1], 4), SizeGroup(FEWER[2], 1, every=3)),
        1100,
        1.8e-3,
        high_noise_share=0.4,
        tag_weights=HARD,
    ),
    "whole": Stage(
        (SizeGroup(FEWER[0], 10), SizeGroup(FEWER[1], 6), SizeGroup(FEWER[2], 1, every=2)),
        1000,
        1.8e-3,
        high_noise_share=0.4,
        tag_weights=HARD | OUTLINED,
    ),
    "large": Stage(
        (SizeGroup(FEWER[0], 6), SizeGroup(FEWER[1], 4), SizeGroup(FEWER[2], 2)),
        1150,
        1.6e-3,
        high_noise_share=0.4,
        pooled_only_share=0.15,
        tag_weights=HARD | OUTLINED,
    ),
    "fine": Stage(
        (SizeGroup(FEWER[0], 4), SizeGroup(FEWER[1], 4), SizeGroup(dict.fromkeys(FULL, 90), 3)),
        1100,
        1.6e-3,
        high_noise_share=0.4,
        pooled_only_share=0.15,
        tag_weights=HARD | OUTLINED | {"full": 1.5, "dark": 0.25},
    ),
    "pairs": Stage(
        (SizeGroup(FEWER[0], 8), SizeGroup(FEWER[1], 4), SizeGroup(dict.fromkeys(FULL, 90), 2)),
        1000,
        1.6e-3,
        high_noise_share=0.4,
        pooled_only_share=0.15,
        tag_weights=HARD | OUTLINED | {"2girls": 3, "2boys": 3},
    ),
}
LISTENING = "large"
"""Before this stage the UNet ignored the pooled vector."""
QUALITY = ", ".join(GOOD_TAGS[:4])
UNDESIRED = "lowres, jpeg artifacts, worst quality, watermark, blurry, very displeasing"
SHOWN = (
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
"""The last is long and mostly of tags that the model never saw, as prompts for larger models are."""


def asked(prompt: str, size: Size, seed: int = 7, steps: int = 20) -> Job:
    """A picture as users ask for it, with quality tags and undesired content."""
    prompts = Prompts(f"{prompt}, {QUALITY}", UNDESIRED)
    return as_served(Job("demo", prompts, *size, steps, "k_euler", "native", Guidance(5.0), (seed,)))


def draw_sheet(file: Path, size: Size, prompts: Sequence[str] = SHOWN) -> Image.Image:
    """Prompts, four beside each other, drawn from a model file as a user would."""
    pipeline = Pipeline(load_weights(file, device="cpu"))
    return Image.fromarray(make_grid([pipeline.run(asked(prompt, size))[0] for prompt in prompts], 4))


def sampled(count: int) -> list[tuple[Chunk, ...]]:
    """Captions at random."""
    rng = np.random.default_rng(256)
    return chunked([write_caption(random_scene(rng), rng) for _ in range(count)], most=1)


def main() -> None:
    """Train one stage, or all of them in their order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stages", nargs="*", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--quick", action="store_true", help="in bfloat16, for processors that have it")
    arguments = parser.parse_args()
    join_processes()
    for name in arguments.stages:
        train(arguments.folder, name, arguments.quick)


def begun(before: Path) -> DemoModel:
    """What the stage before came to, or the model in the repository when it was not trained here."""
    return averaged(before, DemoModel()) if before.exists() else opened(DEMO)[0]


def train(folder: Path, name: str, quick: bool = False) -> None:
    """One stage, from where it was left or from the stage before."""
    stage, order = STAGES[name], list(STAGES)
    vae = trained_vae(folder)
    torch.manual_seed(order.index(name))
    file = folder / f"unet-{name}.pt"
    before = folder / f"unet-{order[order.index(name) - 1]}.pt"
    if order.index(name) and not file.exists():
        model = begun(before)
        if name == LISTENING:
            sum_up(model.language)
        model.requires_grad_(True).train().recenter(sampled(256))
        if name == LISTENING:
            model.enable_pooled()
    else:
        model = DemoModel()
    cast("Any", model).to(memory_format=torch.channels_last)
    lessons = BatchLoss(stage, partial(shelf, folder, vae=vae), in_bfloat16=quick)
    shown = max(stage.list_sizes(), key=lambda size: (size[0] == size[1], size))

    def show(average: nn.Module, step: int) -> None:
        save(cast("DemoModel", average), vae, folder / "naiad-demo.safetensors")
        draw_sheet(folder / "naiad-demo.safetensors", shown).save(folder / f"unet-{name}-{step}.png")

    course = TrainConfig(file, stage.steps, stage.learning_rate, memory=300, show_every=1000, optimizers=muon)
    learn(model, course, partial(lessons.compute, model), show)


if __name__ == "__main__":
    main()
