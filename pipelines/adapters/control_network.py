"""ControlNets built empty, behind a typed interface."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipelines.sampling.deep_shrink import DeepShrink
from pipelines.unet.unet import Residuals
from pipelines.weights.architecture import Config
from pipelines.weights.networks import build_empty

CHANNEL_ORDER = "controlnet_conditioning_channel_order"
"""Key of a ControlNet's config: whether its maps are RGB or, in OpenCV's order, BGR."""


class DiffusersControlNet:
    """diffusers' ControlNet, or its union network with several control types.

    Args:
        config: arguments of diffusers' class.
    """

    def __init__(self, config: Config) -> None:
        from diffusers import (
            ControlNetModel,  # pyright: ignore[reportPrivateImportUsage]
            ControlNetUnionModel,  # pyright: ignore[reportPrivateImportUsage]
        )

        self.modes = cast("int | None", config.get("num_control_type"))
        build = ControlNetModel if self.modes is None else ControlNetUnionModel
        self._is_bgr = config.get(CHANNEL_ORDER) == "bgr"
        config = {**config, CHANNEL_ORDER: "rgb"}
        self.module = build_empty(cast("Callable[..., nn.Module]", build), config)
        self._shrink = DeepShrink(self.module)
        # the module is given hints instead of maps: encoded once, as they are the same in every step
        encoder = cast("Any", self.module).controlnet_cond_embedding
        self._encode, encoder.forward = encoder.forward, _pass_on

    def encode_map(self, pixels: Tensor) -> Tensor:
        """Return the hint (B, width, h, w) of control maps (B, 3, 8h, 8w), with values in [0, 1]."""
        return self._encode(pixels.flip(1) if self._is_bgr else pixels)

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        context: Tensor,
        added_cond_kwargs: Mapping[str, Tensor] | None,
        halvings: int,
        hint: Tensor,
        scale: float,
        mode: int | None = None,
    ) -> Residuals:
        """Return the scaled residuals; the first arguments are the UNet's, for its latents alone.

        Args:
            hint: the encoded control map of each row.
            mode: the control type of a union network.
        """
        inputs: dict[str, object] = {"controlnet_cond": hint, "conditioning_scale": float(scale)}
        if self.modes is not None and mode is not None:
            types = torch.zeros(len(sample), self.modes, device=sample.device)
            types[:, mode] = 1
            inputs |= {"controlnet_cond": [hint], "control_type": types, "control_type_idx": [mode]}
        with self._shrink.shrink(halvings):
            return self.module(
                sample,
                timestep,
                context,
                added_cond_kwargs=added_cond_kwargs,
                return_dict=False,
                **inputs,
            )


def _pass_on(hint: Tensor) -> Tensor:
    return hint
