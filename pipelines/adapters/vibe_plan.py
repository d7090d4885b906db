"""The networks of an IP-Adapter, planned from the headers of its files, and filled with their weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pipelines.adapters.attention import ImageProjections
from pipelines.adapters.image_tokens import build_projection
from pipelines.adapters.ip_adapter import (
    LAYERS,
    PROJECTION,
    IpAdapter,
    detect_ip_adapter,
    find_encoder,
    open_part,
)
from pipelines.errors import WeightsError
from pipelines.weights.checkpoint import Checkpoint
from pipelines.weights.key_map import MappedKey
from pipelines.weights.naming import Naming
from pipelines.weights.networks import ClipImageEncoder
from pipelines.weights.reader import fill_network
from pipelines.weights.sources import Component, FoundWeights, find_weights


@dataclass(frozen=True, slots=True)
class VibePart:
    """A network of an adapter, and where its weights are."""

    source: Checkpoint
    module: nn.Module
    weights: FoundWeights

    def fill(self, device: torch.device, dtype: torch.dtype) -> None:
        """Read the weights onto a device; raise WeightsError if one is not finite."""
        fill_network(self.module, self.source, self.weights, device, dtype)


@dataclass(frozen=True, slots=True)
class VibePlan:
    """The networks of an adapter, still empty, and where their weights are."""

    adapter: IpAdapter
    encoder: ClipImageEncoder
    projection: nn.Module
    layers: Sequence[ImageProjections]
    parts: Sequence[VibePart]


def plan_vibe(path: Path, image_encoder: Path | None, shapes: Sequence[tuple[int, int]]) -> VibePlan:
    """Plan the loading of an adapter from headers alone.

    Args:
        image_encoder: a file or folder with its image encoder; None if it is in the adapter's file.
        shapes: those of the keys' matrices in the cross-attentions of the UNet, in diffusers' order.

    Raises:
        WeightsError: a file cannot be used, or the adapter is for another UNet.
    """
    adapter = detect_ip_adapter(path)
    count = sum(key.startswith(LAYERS) and key.endswith(".to_k_ip.weight") for key in adapter.source.tensors)
    if count != len(shapes) or adapter.width != shapes[0][1]:
        reason = f"an adapter for {count} cross-attentions of width {adapter.width}"
        raise WeightsError(path, f"{reason}; the model has {len(shapes)} of width {shapes[0][1]}")
    encoder_source, config = find_encoder(adapter, image_encoder)
    try:
        encoder = ClipImageEncoder(config)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
        raise WeightsError(encoder_source.path, "an image encoder that cannot be built") from None
    with torch.device("meta"):
        projection = build_projection(adapter).requires_grad_(False)
        layers = [ImageProjections(width, inner).requires_grad_(False) for inner, width in shapes]
    numbered = nn.ModuleDict({str(2 * index + 1): layer for index, layer in enumerate(layers)})
    parts = (
        _plan_part(encoder_source, encoder.module),
        _plan_part(open_part(adapter.source, PROJECTION), projection),
        _plan_part(open_part(adapter.source, LAYERS), numbered),
    )
    return VibePlan(adapter, encoder, projection, layers, parts)


def _plan_part(source: Checkpoint, module: nn.Module) -> VibePart:
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    naming = Naming("", {name: (MappedKey(name),) for name in shapes})
    return VibePart(source, module, find_weights(source, [Component("vibe", shapes, [naming])])["vibe"])
