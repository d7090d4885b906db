"""Where each weight of a network is in a single-file checkpoint, and in which shape.

The tables are derived from an architecture's config, so they hold for every width and depth. They map the model's
keys to the file's; loading and exporting both use them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from pipelines.weights.architecture import Architecture, Config
from pipelines.weights.checkpoint import UNET_PREFIX, VAE_PREFIX
from pipelines.weights.families import FAMILIES

if TYPE_CHECKING:
    from torch import Tensor

Storage = Literal["same", "conv", "transposed", "third"]
"""How a file stores a weight: as the model has it, with two trailing dimensions of 1 (the 1x1 convolution of a linear
layer), transposed, or as one of three stacked along the first dimension."""


@dataclass(frozen=True, slots=True)
class MappedKey:
    """The key of a tensor in a file and how it is stored; `part` is the index among three stacked tensors."""

    key: str
    storage: Storage = "same"
    part: int = 0

    def to_model(self, stored: "Tensor") -> "Tensor":
        """Return the tensor in the model's shape, as a view of the stored one."""
        if self.storage == "conv" and stored.ndim == 4:
            return stored[:, :, 0, 0]
        if self.storage == "transposed":
            return stored.T
        if self.storage == "third":
            return stored.chunk(3)[self.part]
        return stored

    def model_shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of `to_model`'s result for a stored shape; one that is not as described is kept."""
        if self.storage == "conv" and len(stored) == 4 and stored[2:] == (1, 1):
            return stored[:2]
        if self.storage == "transposed":
            return stored[::-1]
        if self.storage == "third" and stored and stored[0] % 3 == 0:
            return (stored[0] // 3, *stored[1:])
        return stored


def to_stored(keys: Mapping[str, MappedKey], tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Return a model's tensors under the file's keys and in the file's shapes."""
    import torch

    thirds: dict[str, dict[int, Tensor]] = {}
    stored: dict[str, Tensor] = {}
    for name, mapped in keys.items():
        tensor = tensors[name]
        if mapped.storage == "third":
            thirds.setdefault(mapped.key, {})[mapped.part] = tensor
        elif mapped.storage == "conv":
            stored[mapped.key] = tensor[:, :, None, None]
        else:
            stored[mapped.key] = tensor.T.contiguous() if mapped.storage == "transposed" else tensor
    return stored | {key: torch.cat([parts[k] for k in range(3)]) for key, parts in thirds.items()}


def map_unet_keys(names: Iterable[str], config: Config) -> dict[str, MappedKey]:
    """Map a UNet's keys to those of a single file."""
    blocks = _map_unet_blocks(config)
    return {name: MappedKey(UNET_PREFIX + _rename(name, blocks, UNET_RESNET)) for name in names}


def map_control_keys(names: Iterable[str], config: Config) -> dict[str, MappedKey]:
    """Map a ControlNet's keys to those of the original repository, without a prefix; `config` is its UNet's."""
    blocks = _map_unet_blocks(config) | _map_control_blocks(config)
    return {name: MappedKey(_rename(name, blocks, UNET_RESNET)) for name in names}


def map_vae_keys(names: Iterable[str], config: Config) -> dict[str, MappedKey]:
    """Map a VAE's keys to those of a single file, which stores its attention as 1x1 convolutions."""
    blocks = _map_vae_blocks(config)

    def map_key(name: str) -> MappedKey:
        key = VAE_PREFIX + _rename(name, blocks, VAE_RESNET | VAE_ATTENTION)
        is_linear = ".attentions." in name and name.endswith("weight") and "group_norm" not in name
        return MappedKey(key, "conv" if is_linear else "same")

    return {name: map_key(name) for name in names}


def map_text_keys(names: Iterable[str], architecture: Architecture, number: int) -> dict[str, MappedKey]:
    """Map the keys of text encoder `number`, with or without transformers' `text_model.` level."""
    prefix = text_prefix(architecture, number)
    if architecture.text_encoders[number].layout == "openclip":
        return map_openclip_keys(names, prefix)
    return {name: MappedKey(prefix + name.removeprefix("text_model.")) for name in names}


def map_openclip_keys(names: Iterable[str], prefix: str) -> dict[str, MappedKey]:
    """Map a text encoder's keys to those of OpenAI and OpenCLIP."""
    return {name: _map_openclip_key(name.removeprefix("text_model."), prefix) for name in names}


def text_prefix(architecture: Architecture, number: int) -> str:
    """Return what the keys of text encoder `number` begin with in a single file."""
    layout = architecture.text_encoders[number].layout
    level = "model." if layout == "openclip" else "transformer.text_model."
    return FAMILIES[architecture.family].text_prefixes[number] + level


UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_RESNET = {"conv_shortcut": "nin_shortcut"}
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""The names that diffusers gave a VAE's attention until 2023."""
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _rename(name: str, blocks: Mapping[str, str], layers: Mapping[str, str]) -> str:
    """Replace a weight's block, then the layer within it; a name that is in no table is kept."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        block = blocks.get(".".join(parts[:length]))
        if block is not None:
            return ".".join((block, *_rename_layer(parts[length:], layers)))
    return name


def _rename_layer(parts: list[str], layers: Mapping[str, str]) -> list[str]:
    for length in (2, 1):
        layer = layers.get(".".join(parts[:length]))
        if layer is not None:
            return [layer, *parts[length:]]
    return parts


def _attention_by_level(config: Config, block_types: str) -> list[bool]:
    return ["CrossAttn" in block for block in cast("list[str]", config[block_types])]


def _map_unet_blocks(config: Config) -> dict[str, str]:
    layers = cast("int", config["layers_per_block"])
    blocks = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    return blocks | _map_down_blocks(config, layers) | _map_up_blocks(config, layers + 1)


def _map_down_blocks(config: Config, layers: int) -> dict[str, str]:
    """The file numbers all resnets and downsamplers consecutively, from 1."""
    blocks: dict[str, str] = {}
    levels, number = _attention_by_level(config, "down_block_types"), 1
    for level, has_attention in enumerate(levels):
        for layer in range(layers):
            blocks[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{number}.0"
            if has_attention:
                blocks[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        if level < len(levels) - 1:
            blocks[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    return blocks


def _map_up_blocks(config: Config, layers: int) -> dict[str, str]:
    """The file numbers all resnets consecutively; an upsampler shares the number of the last resnet before it."""
    blocks: dict[str, str] = {}
    levels = _attention_by_level(config, "up_block_types")
    for level, has_attention in enumerate(levels):
        for layer in range(layers):
            number = level * layers + layer
            blocks[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{number}.0"
            if has_attention:
                blocks[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{number}.1"
        if level < len(levels) - 1:
            last, index = level * layers + layers - 1, 2 if has_attention else 1
            blocks[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{last}.{index}.conv"
    return blocks


def _map_control_blocks(config: Config) -> dict[str, str]:
    """What a ControlNet has besides: the file numbers the convolutions of its hint encoder with SiLUs between them."""
    levels, layers = (
        len(cast("list[str]", config["down_block_types"])),
        cast("int", config["layers_per_block"]),
    )
    hint, start = "controlnet_cond_embedding", "input_hint_block"
    blocks = {f"{hint}.conv_in": f"{start}.0", f"{hint}.conv_out": f"{start}.14"}
    blocks |= {f"{hint}.blocks.{number}": f"{start}.{2 * number + 2}" for number in range(6)}
    blocks |= {f"controlnet_down_blocks.{k}": f"zero_convs.{k}.0" for k in range(levels * (layers + 1))}
    return blocks | {"controlnet_mid_block": "middle_block_out.0"}


def _map_vae_blocks(config: Config) -> dict[str, str]:
    levels = len(cast("list[int]", config["block_out_channels"]))
    layers = cast("int", config["layers_per_block"])
    blocks: dict[str, str] = {}
    for side in ("encoder", "decoder"):
        blocks[f"{side}.mid_block.resnets.0"] = f"{side}.mid.block_1"
        blocks[f"{side}.mid_block.resnets.1"] = f"{side}.mid.block_2"
        blocks[f"{side}.mid_block.attentions.0"] = f"{side}.mid.attn_1"
        blocks[f"{side}.conv_norm_out"] = f"{side}.norm_out"
    for level in range(levels):
        reverse = levels - 1 - level  # the file counts the decoder's levels from the finest
        for layer in range(layers + 1):
            blocks[f"encoder.down_blocks.{level}.resnets.{layer}"] = f"encoder.down.{level}.block.{layer}"
            blocks[f"decoder.up_blocks.{level}.resnets.{layer}"] = f"decoder.up.{reverse}.block.{layer}"
        blocks[f"encoder.down_blocks.{level}.downsamplers.0"] = f"encoder.down.{level}.downsample"
        blocks[f"decoder.up_blocks.{level}.upsamplers.0"] = f"decoder.up.{reverse}.upsample"
    return blocks


OPENCLIP: Mapping[str, str] = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
OPENCLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
THIRDS = {"q_proj": 0, "k_proj": 1, "v_proj": 2}


def _map_openclip_key(name: str, prefix: str) -> MappedKey:
    """OpenCLIP stacks query, key and value, and stores its projection transposed."""
    if name == "text_projection.weight":
        return MappedKey(prefix + "text_projection", "transposed")
    if name in OPENCLIP:
        return MappedKey(prefix + OPENCLIP[name])
    number, rest = name.removeprefix("encoder.layers.").split(".", 1)  # "7", "mlp.fc1.bias"
    layer, parameter = rest.rsplit(".", 1)
    block = f"{prefix}transformer.resblocks.{number}."
    part = THIRDS.get(layer.removeprefix("self_attn."))
    if part is not None:
        return MappedKey(f"{block}attn.in_proj_{parameter}", "third", part)
    return MappedKey(f"{block}{OPENCLIP_LAYER[layer]}.{parameter}")
