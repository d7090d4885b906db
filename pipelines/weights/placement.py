"""Puts a model's weights where its memory plan says: on the device, or in CPU memory until a layer runs."""

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import nn

from pipelines.device import find_free_memory
from pipelines.memory_plan import MemoryPlan, Sizes, plan_memory
from pipelines.offload import Copier, Offload, make_copier, move_weights, offload_all
from pipelines.pass_limits import count_decoder_bytes, count_row_bytes
from pipelines.unet.attention import TransformerBlock
from pipelines.unet.unet import UNetModel
from pipelines.weights.architecture import Architecture
from pipelines.weights.networks import ClipTextEncoder, TorchUNet, TorchVae

TOKENS = 231
"""Of three chunks, the most that NAI takes."""
SCALE_BYTES = 4
"""Of a row of a quantized weight."""
CARD_SHARE = 0.93
"""Share of a card's memory, in 10^9 bytes, that is free before a model is loaded."""


class Networks(Protocol):
    """A model's networks, which may still be empty."""

    @property
    def architecture(self) -> Architecture: ...
    @property
    def unet(self) -> TorchUNet: ...
    @property
    def vae(self) -> TorchVae: ...
    @property
    def text_encoders(self) -> tuple[ClipTextEncoder, ...]: ...
    @property
    def inpainting(self) -> TorchUNet | None: ...


def choose_plan(
    networks: Networks,
    device: torch.device,
    dtype: torch.dtype,
    vae_dtype: torch.dtype,
    gigabytes: int | None,
    is_quantized: bool = False,
) -> MemoryPlan:
    """Return the memory plan of a model that is not loaded yet.

    Args:
        gigabytes: of the card to plan for; None plans for what is free, where the device reports it.
        is_quantized: whether the layers of the UNet that can be quantized will be.
    """
    budget = find_free_memory(device) if gigabytes is None else int(CARD_SHARE * gigabytes * 1e9)
    return plan_memory(measure_sizes(networks, dtype, vae_dtype, is_quantized), budget)


def measure_sizes(
    networks: Networks, dtype: torch.dtype, vae_dtype: torch.dtype, is_quantized: bool = False
) -> Sizes:
    """Return the sizes of a model; the arguments are those of `choose_plan`."""
    unets = [each.module for each in (networks.unet, networks.inpainting) if each is not None]
    item, listed = dtype.itemsize, _list_blocks(unets)
    projections = item * sum(map(_count_projections, listed))
    saved = [_count_saved(block, item) if is_quantized else 0 for block in listed]
    blocks = [
        item * (count_elements(block) - _count_projections(block)) - less
        for block, less in zip(listed, saved, strict=True)
    ]
    return Sizes(
        unet=item * sum(map(count_elements, unets)) - sum(saved),
        projections=projections,
        blocks=sum(blocks),
        largest=max(blocks),
        encoders=item * sum(count_elements(encoder.module) for encoder in networks.text_encoders),
        vae=vae_dtype.itemsize * count_elements(networks.vae.module),
        keys=item * TOKENS * networks.unet.module.width,
        row_latent=count_row_bytes(networks.architecture, dtype),
        decoded_latent=count_decoder_bytes(networks.architecture, vae_dtype),
    )


def place_weights(
    networks: Networks, memory: MemoryPlan, device: torch.device, copier: Copier | None = None
) -> Offload | None:
    """Move the weights of a loaded model, which are in CPU memory where the plan offloads them, to the device."""
    if not memory.offloads_encoders:
        return None
    offload = Offload(copier or make_copier(device))
    for encoder in networks.text_encoders:
        offload_all(offload, encoder.module)
        move_weights(encoder.module, device, offload)
    unets = [each.module for each in (networks.unet, networks.inpainting) if each is not None]
    if memory.offloads_unet:
        _offload_blocks(offload, _list_blocks(unets), memory.streamed)
        for unet in unets:
            move_weights(unet, device, offload)
    return offload


def _offload_blocks(offload: Offload, blocks: Sequence[TransformerBlock], streamed: int) -> None:
    """Offload the projections of prompts in all blocks, and some blocks as evenly spread as possible."""
    total = sum(_count_bytes(block) for block in blocks)
    done = passed = 0
    for block in blocks:
        projections = block.attn2.to_k, block.attn2.to_v
        for projection in projections:
            offload.add(projection)
        passed += _count_bytes(block)
        if done < streamed * passed / total:
            offload.add(block, projections)
            done += _count_bytes(block)


def _list_blocks(unets: Sequence[UNetModel]) -> list[TransformerBlock]:
    return [block for unet in unets for block in unet.iter_blocks()]


def _count_projections(block: TransformerBlock) -> int:
    return count_elements(block.attn2.to_k) + count_elements(block.attn2.to_v)


def _count_saved(block: TransformerBlock, item: int) -> int:
    """Return the bytes by which a block with `item` bytes a weight is smaller when it is quantized."""
    layers = [layer for _, layer in block.list_quantizable()]
    return sum((item - 1) * layer.weight.numel() - SCALE_BYTES * layer.out_features for layer in layers)


def _count_bytes(block: TransformerBlock) -> int:
    """Return the bytes of a block besides its projections of prompts."""
    weight = cast("torch.Tensor", block.norm1.weight)
    return (count_elements(block) - _count_projections(block)) * weight.itemsize


def count_elements(module: nn.Module) -> int:
    """Return the number of a module's weights."""
    return sum(parameter.numel() for parameter in module.parameters())
