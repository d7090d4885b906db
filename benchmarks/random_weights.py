"""Models with random weights, for benchmarks that draw without a checkpoint."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from pipelines.speed import Speed
from pipelines.weights.architecture import Architecture
from pipelines.weights.detect import Detection
from pipelines.weights.load import Weights
from pipelines.weights.networks import build_networks, load_state


def build_random_weights(architecture: Architecture, device: torch.device, dtype: torch.dtype) -> Weights:
    """Build a model with random weights directly on the device."""
    unet, vae, towers = build_networks(architecture)
    generator = torch.Generator(device).manual_seed(0)
    for module in (unet.module, vae.module, *(tower.module for tower in towers)):
        _randomize(module.to_empty(device=device), generator)
        nn.Module.to(module, dtype=dtype)
    vae_dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    nn.Module.to(vae.module, dtype=vae_dtype)
    identity = Detection("sdxl", "single", 4, "v", True, ("random weights",))
    return Weights(identity, architecture, unet, vae, towers, device, dtype, vae_dtype)


def _randomize(module: nn.Module, generator: torch.Generator) -> None:
    """Set norm gains to 1, biases to 0, and scale the other weights by fan-in, so that activations stay finite."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.ndim > 1:
                parameter.normal_(generator=generator).mul_(0.5 * parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(1.0 if name == "weight" else 0.0)
        for name, buffer in part.named_buffers(recurse=False):
            assert name == "position_ids", name
            buffer.copy_(torch.arange(buffer.shape[-1])[None])


def copy_weights(weights: Weights, speed: Speed) -> Weights:
    """Return the same model to be run another way; tensors whose layout that does not change are shared."""
    unet, vae, towers = build_networks(weights.architecture)
    for copy, original in zip((unet, vae, *towers), list_networks(weights), strict=True):
        load_state(copy.module, original.module.state_dict())
    if speed.weights != "full":
        unet.quantize(speed.weights, weights.device)
    unet.optimize(speed, weights.device)
    vae.optimize(speed)
    return replace(weights, unet=unet, vae=vae, text_encoders=towers, speed=speed)


def list_networks(weights: Weights) -> Sequence[Any]:
    """Return the networks of a model, without their types."""
    return cast("Sequence[Any]", (weights.unet, weights.vae, *weights.text_encoders))
