"""The networks that are trained together, text encoders and UNet, and saving and loading them as a model file."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn

from demo.architecture import demo_architecture
from demo.checkpoint import write_checkpoint
from demo.text_encoders import TextEncoders
from pipelines.job import Pass
from pipelines.plan import DEEP_SHRINK_TIMES, choose_downscales
from pipelines.sampling.deep_shrink import DeepShrink
from pipelines.text.tokens import EMPTY, Chunk
from pipelines.weights.load import load_weights

POOLED_SPREAD = 50.0
"""Mean distance of the pooled vectors from their mean after `center_pooled`."""
PYRAMID_ABOVE, DEEP_SHRINK_ABOVE = 409_600, 160_000
"""Areas in pixels, as `pyramid_above` and `deep_shrink_above` in configs/profiles/demo.toml."""


def as_served(pass_: Pass) -> Pass:
    """Return a pass with the downscales that the demo's profile gives it."""
    downscales = choose_downscales(pass_.width, pass_.height, PYRAMID_ABOVE, DEEP_SHRINK_ABOVE)
    return replace(pass_, pyramid=downscales.pyramid, deep_shrink=downscales.deep_shrink)


class DemoModel(nn.Module):
    """Text encoders and UNet; with 9 channels an inpainting UNet."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        # `language` is a key in training checkpoints
        self.language = TextEncoders()
        self.unet = UNet2DConditionModel(**dict(demo_architecture(channels).unet))  # type: ignore[arg-type]
        self._shrink = DeepShrink(self.unet)

    def forward(
        self,
        noisy: Tensor,
        times: Tensor,
        captions: Sequence[Sequence[Chunk]],
        ids: Tensor,
        image_tokens: Tensor | None = None,
        pooled_only: Tensor | None = None,
    ) -> Tensor:
        """Return the velocity (B, 4, h, w) at times (B,), with deep shrink where the server uses it.

        Args:
            noisy: All input channels of the UNet, (B, 4 | 9, h, w).
            ids: SDXL's size ids (B, 6).
            image_tokens: Tokens of an image adapter (B, tokens, width).
            pooled_only: For which captions (B,) the context is that of an empty one.
        """
        context, pooled = self.language(captions)
        if pooled_only is not None and pooled_only.any():
            empty = self.language([(EMPTY,) * len(captions[0])])[0]
            context = torch.where(pooled_only[:, None, None], empty, context)
        inputs = [noisy, times, context, pooled, ids, *([] if image_tokens is None else [image_tokens])]
        height, width = (8 * side for side in noisy.shape[2:])
        bounds = DEEP_SHRINK_TIMES[: choose_downscales(width, height, None, DEEP_SHRINK_ABOVE).deep_shrink]
        counts = (times[:, None] > torch.tensor(bounds)).sum(dim=1)
        velocity = torch.empty_like(noisy[:, :4])
        for count in counts.unique().tolist():
            rows = counts == count
            with self._shrink.shrink(count):
                velocity[rows] = self._predict_velocity(*(values[rows] for values in inputs)).float()
        return velocity

    def _predict_velocity(
        self,
        noisy: Tensor,
        times: Tensor,
        context: Tensor,
        pooled: Tensor,
        ids: Tensor,
        *image_tokens: Tensor,
    ) -> Tensor:
        added = {"text_embeds": pooled, "time_ids": ids}
        states = (context, list(image_tokens)) if image_tokens else context
        return cast("Any", self.unet)(noisy, times, states, added_cond_kwargs=added, return_dict=False)[0]

    @torch.no_grad()
    def center_pooled(self, captions: Sequence[Sequence[Chunk]]) -> None:
        """Center the pooled vectors of captions and scale them to POOLED_SPREAD without changing the UNet's output.

        A training step moves weights by a similar amount for inputs of any size. So the larger the differences between
        captions are compared with their mean, the sooner the UNet learns to use them.
        """
        tower, first = cast("Any", self.language.towers[-1]), cast("Any", self.unet).add_embedding.linear_1
        projection, width = tower.text_projection.weight, tower.text_projection.weight.shape[0]
        pooled = self.language(captions)[1]
        mean = pooled.mean(dim=0)
        factor = POOLED_SPREAD / (pooled - mean).norm(dim=1).mean()
        tower.text_model.final_layer_norm.bias -= torch.linalg.solve(projection, mean)
        first.bias += first.weight[:, :width] @ mean
        projection *= factor
        first.weight[:, :width] /= factor

    @torch.no_grad()
    def enable_pooled(self) -> None:
        """Reset half of the units that read the size ids so that they read centered pooled vectors instead.

        While pooled vectors were uninformative, all these units moved to where their activation is flat and gradients
        vanish. The reset units contribute nothing at first.
        """
        tower, embedding = cast("Any", self.language.towers[-1]), cast("Any", self.unet).add_embedding
        first, second = embedding.linear_1, embedding.linear_2
        half, width = first.out_features // 2, tower.text_projection.out_features
        first.weight[:half] = 0
        nn.init.normal_(first.weight[:half, :width], std=1 / POOLED_SPREAD)
        first.bias[:half] = 0
        second.weight[:, :half] = 0


def save_model(model: DemoModel, vae: nn.Module, file: Path) -> None:
    """Write a model file that the server loads."""
    weights = [model.unet.state_dict(), vae.state_dict(), *model.language.expand_states()]
    write_checkpoint(file, demo_architecture(), weights)


def load_model(file: Path, channels: int = 4) -> tuple[DemoModel, AutoencoderKL]:
    """Load the networks of a model file for training. Additional channels for inpainting start with zero weights."""
    weights = load_weights(file)
    model = DemoModel(channels)
    state = cast("Any", weights.unet).module.state_dict()
    first = state["conv_in.weight"]
    added = torch.zeros(first.shape[0], channels - first.shape[1], *first.shape[2:])
    model.unet.load_state_dict(state | {"conv_in.weight": torch.cat([first, added], dim=1)})
    model.language.load_expanded_states(
        [cast("Any", tower).module.state_dict() for tower in weights.text_encoders]
    )
    return model, cast("Any", weights.vae).module
