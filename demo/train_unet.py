"""Trains the demo's UNet and text encoders: `python -m demo.train_unet FOLDER`, after `demo.train_vae FOLDER`.

Velocity prediction on the zero-terminal-SNR table (Lin et al. 2023), min-SNR weights (Hang et al. 2023) with a floor
that keeps the steps of pure noise in play. It goes from small pictures to the sizes that are served; each stage
starts from the average of the one before.
"""

import argparse
from dataclasses import dataclass
from math import isinf, sqrt
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]
from PIL import Image
from torch import Tensor, nn

from demo.architecture import demo_architecture
from demo.captions import GOOD, caption
from demo.checkpoint import write
from demo.language import Language, chunked, sprinkled
from demo.latents import Shelf, Size, shelf
from demo.learning import Course, averaged, learn
from demo.scenes import sheet
from demo.train_vae import trained_vae
from pipelines.job import Guidance, Job, Prompts
from pipelines.pipeline import Pipeline
from pipelines.prediction import scaled_linear
from pipelines.weights import load

GAMMA, FLOOR = 5.0, 0.15
PURE = 0.06
"""How many of the samples are at infinite noise."""
COMMON_TOKENS = 40_000
"""Ids below this are words and pieces of words."""
QUALITY = ", ".join(GOOD[:4])
UNDESIRED = "lowres, jpeg artifacts, worst quality, watermark, blurry, very displeasing"
SHOWN = (
    "1girl, solo, red hair, long hair, blue eyes, smile, white background, upper body",
    "1boy, solo, green hair, short hair, brown eyes, glasses, yellow shirt, blue background, full body",
    "1girl, solo, blonde hair, twintails, green eyes, open mouth, black background, hat, chibi",
    "2girls, pink hair, blue hair, red background, upper body",
    "no humans, red heart, white background",
    "no humans, 2 stars, yellow star, black background",
    "no humans, blue cat, orange background, flat color",
    "1girl, solo, purple hair, ponytail, purple eyes, closed eyes, sketch, grey background",
)


@dataclass(frozen=True, slots=True)
class Stage:
    """One size class: how many pictures of each size are drawn, how large a batch is, how long it goes."""

    sizes: tuple[Size, ...]
    pictures: int
    batch: int
    steps: int
    rate: float


STAGES = {
    "small": Stage(((128, 128), (96, 160), (160, 96)), 6000, 32, 3000, 1.2e-3),
    "quarter": Stage(((256, 256), (224, 320), (320, 224)), 3000, 16, 3000, 8e-4),
    "half": Stage(((512, 512), (416, 608), (608, 416), (512, 768), (768, 512)), 800, 6, 2000, 5e-4),
    "full": Stage(((832, 1216), (1216, 832), (1024, 1024), (512, 768), (640, 640)), 300, 2, 1500, 3e-4),
}


class Draughtsman(nn.Module):
    """Everything that is trained together: the text encoders and the UNet."""

    def __init__(self) -> None:
        super().__init__()
        self.language = Language()
        self.unet = UNet2DConditionModel(**dict(demo_architecture().unet))  # type: ignore[arg-type]

    def forward(self, noisy: Tensor, times: Tensor, captions: list[Any], size: Size) -> Tensor:
        """The velocity (B, 4, h, w) at times (B,) for pictures of one size (width, height)."""
        context, pooled = self.language(captions)
        ids = torch.tensor([[size[1], size[0], 0, 0, size[1], size[0]]], dtype=torch.float32).expand(
            len(noisy), -1
        )
        added = {"text_embeds": pooled, "time_ids": ids}
        return cast("Any", self.unet)(noisy, times, context, added_cond_kwargs=added, return_dict=False)[0]


class Lessons:
    """Batches of one stage and what a model gets wrong in them."""

    def __init__(self, shelves: list[Shelf], batch: int, seed: int) -> None:
        self._shelves, self._batch = shelves, batch
        self._rng = np.random.default_rng(seed)
        table = scaled_linear(zsnr=True)
        alphas = [0.0 if isinf(sigma) else 1 / sqrt(sigma**2 + 1) for sigma in table.sigmas]
        self._alphas = torch.tensor(alphas)

    def loss(self, model: Draughtsman) -> Tensor:
        """The weighted error of the velocity in the next batch."""
        rng = self._rng
        own = self._shelves[rng.integers(len(self._shelves))]
        scenes, clean = own.batch(max(1, round(self._batch * _relief(own, self._shelves))), rng)
        captions = chunked([caption(scene, rng) for scene in scenes], most=1 if rng.random() < 0.5 else 2)
        captions = [self._sprinkled(parts) for parts in captions]
        times = torch.from_numpy(rng.integers(0, 1000, len(clean)))
        times[torch.from_numpy(rng.random(len(clean)) < PURE)] = 999
        alpha = self._alphas[times][:, None, None, None]
        sigma = (1 - alpha.square()).sqrt()
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
        velocity = model(alpha * clean + sigma * noise, times, captions, own.size)
        error = (velocity - (alpha * noise - sigma * clean)).square().mean(dim=(1, 2, 3))
        ratio = (alpha / sigma).square().flatten()
        weight = (ratio.clamp(max=GAMMA) / (ratio + 1)).clamp(min=FLOOR)
        return (weight * error).mean()

    def _sprinkled(self, parts: tuple[Any, ...]) -> tuple[Any, ...]:
        rng = self._rng
        if not parts[0].ids or rng.random() > 0.15:
            return parts
        return sprinkled(
            parts, [int(token) for token in rng.integers(1000, COMMON_TOKENS, rng.integers(1, 7))]
        )


def _relief(own: Shelf, shelves: list[Shelf]) -> float:
    """A larger picture comes in a smaller batch: the share of the smallest size's batch."""
    return min(other.size[0] * other.size[1] for other in shelves) / (own.size[0] * own.size[1])


def export(model: Draughtsman, vae: nn.Module, file: Path) -> None:
    """Write a model file."""
    states = [model.unet.state_dict(), vae.state_dict(), *model.language.unfolded()]
    write(file, demo_architecture(), states)


def draw_sheet(file: Path, size: Size, steps: int = 20) -> Image.Image:
    """The shown prompts, drawn from a model file as a user would."""
    pipeline = Pipeline(load(file, device="cpu"))
    pictures = [
        pipeline.run(
            Job(
                "demo",
                Prompts(f"{text}, {QUALITY}", UNDESIRED),
                *size,
                steps,
                "k_euler",
                "native",
                Guidance(5.0),
                (7,),
            )
        )[0]
        for text in SHOWN
    ]
    return Image.fromarray(sheet(pictures, 4))


def main() -> None:
    """Train one stage, or all of them in their order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stages", nargs="*", default=list(STAGES), choices=list(STAGES))
    arguments = parser.parse_args()
    for name in arguments.stages:
        train(arguments.folder, name)


def train(folder: Path, name: str) -> None:
    """One stage, from where it was left or from the stage before."""
    stage, order = STAGES[name], list(STAGES)
    vae = trained_vae(folder)
    torch.manual_seed(order.index(name))
    model = Draughtsman()
    file = folder / f"unet-{name}.pt"
    before = folder / f"unet-{order[order.index(name) - 1]}.pt"
    if order.index(name) and not file.exists():
        averaged(before, model).requires_grad_(True).train()
    cast("Any", model).to(memory_format=torch.channels_last)
    scale = demo_architecture().latent_scale
    lessons = Lessons(
        [shelf(folder, size, stage.pictures, vae, scale) for size in stage.sizes],
        stage.batch,
        seed=stage.steps,
    )

    def show(average: nn.Module, step: int) -> None:
        export(cast("Draughtsman", average), vae, folder / "naiad-demo.safetensors")
        draw_sheet(folder / "naiad-demo.safetensors", stage.sizes[0]).save(folder / f"unet-{name}-{step}.png")

    learn(model, Course(file, stage.steps, stage.rate, show_every=500), lambda _: lessons.loss(model), show)


if __name__ == "__main__":
    main()
