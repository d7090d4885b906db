"""Where each weight of our networks lies in a single-file checkpoint, and how it is shaped there.

The tables follow from an architecture's config, so they hold for every width and depth. One direction is
written down, from our key to the file's; loading and exporting both go along it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from pipelines.weights.architecture import Architecture, Config, TextEncoderConfig

if TYPE_CHECKING:
    from torch import Tensor

UNET = "model.diffusion_model."
VAE = "first_stage_model."
SD1_TEXT = "cond_stage_model.transformer.text_model."

Shaping = Literal["same", "conv", "transposed", "third"]


@dataclass(frozen=True, slots=True)
class MappedKey:
    """A tensor in the file, and what it takes to make it ours.

    "conv" drops two trailing dimensions of 1, "third" takes part `part` of three stacked along the first.
    """

    key: str
    shaping: Shaping = "same"
    part: int = 0

    def to_model(self, stored: "Tensor") -> "Tensor":
        """The tensor as our network wants it: a view of the stored one."""
        if self.shaping == "conv" and stored.ndim == 4:
            return stored[:, :, 0, 0]
        if self.shaping == "transposed":
            return stored.T
        if self.shaping == "third":
            return stored.chunk(3)[self.part]
        return stored


def to_stored(sources: Mapping[str, MappedKey], tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """The other way: our tensors under the file's keys and in its shapes."""
    import torch

    thirds: dict[str, dict[int, Tensor]] = {}
    stored: dict[str, Tensor] = {}
    for name, source in sources.items():
        tensor = tensors[name]
        if source.shaping == "third":
            thirds.setdefault(source.key, {})[source.part] = tensor
        elif source.shaping == "conv":
            stored[source.key] = tensor[:, :, None, None]
        else:
            stored[source.key] = tensor.T.contiguous() if source.shaping == "transposed" else tensor
    return stored | {key: torch.cat([parts[k] for k in range(3)]) for key, parts in thirds.items()}


def map_unet_keys(names: Iterable[str], config: Config) -> dict[str, MappedKey]:
    """Where a UNet's weights lie."""
    blocks = _unet_blocks(config)
    return {name: MappedKey(UNET + _renamed(name, blocks, UNET_RESNET)) for name in names}


def map_vae_keys(names: Iterable[str], config: Config) -> dict[str, MappedKey]:
    """Where a VAE's weights lie; its attention is written as 1x1 convolutions."""
    blocks = _vae_blocks(config)

    def source(name: str) -> MappedKey:
        key = VAE + _renamed(name, blocks, VAE_RESNET | VAE_ATTENTION)
        linear = ".attentions." in name and name.endswith("weight") and "group_norm" not in name
        return MappedKey(key, "conv" if linear else "same")

    return {name: source(name) for name in names}


def map_text_keys(names: Iterable[str], architecture: Architecture, number: int) -> dict[str, MappedKey]:
    """Where the weights of text encoder `number` lie, whatever level transformers hangs them on."""
    tower = architecture.text_encoders[number]
    place = _open_clip if tower.layout == "openclip" else _clip
    prefix = text_prefix(architecture, number)
    return {name: place(name.removeprefix("text_model."), prefix) for name in names}


def text_prefix(architecture: Architecture, number: int) -> str:
    """What the keys of a text encoder begin with in a single file."""
    if architecture.family == "sd15":
        return SD1_TEXT
    tower: TextEncoderConfig = architecture.text_encoders[number]
    inner = "model." if tower.layout == "openclip" else "transformer.text_model."
    return f"conditioner.embedders.{number}.{inner}"


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
"""How diffusers spelled a VAE's attention until 2023."""
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _renamed(name: str, blocks: Mapping[str, str], leaves: Mapping[str, str]) -> str:
    """Replace the block a weight belongs to, then the layer within it; what is in no table keeps its name."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        block = blocks.get(".".join(parts[:length]))
        if block is not None:
            return ".".join((block, *_layer(parts[length:], leaves)))
    return name


def _layer(parts: list[str], leaves: Mapping[str, str]) -> list[str]:
    for length in (2, 1):
        leaf = leaves.get(".".join(parts[:length]))
        if leaf is not None:
            return [leaf, *parts[length:]]
    return parts


def _kinds(config: Config, side: str) -> list[tuple[int, bool]]:
    """Each level of one side of a UNet, and whether it has attention."""
    return [(level, "CrossAttn" in kind) for level, kind in enumerate(cast("list[str]", config[side]))]


def _unet_blocks(config: Config) -> dict[str, str]:
    layers = cast("int", config["layers_per_block"])
    ends = {
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
    return ends | _down_blocks(config, layers) | _up_blocks(config, layers + 1)


def _down_blocks(config: Config, layers: int) -> dict[str, str]:
    """The file numbers every resnet and every downsampler in one row, from 1."""
    blocks: dict[str, str] = {}
    levels, number = _kinds(config, "down_block_types"), 1
    for level, attends in levels:
        for layer in range(layers):
            blocks[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{number}.0"
            if attends:
                blocks[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        if level < len(levels) - 1:
            blocks[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    return blocks


def _up_blocks(config: Config, layers: int) -> dict[str, str]:
    """Here an upsampler shares its number with the last resnet before it."""
    blocks: dict[str, str] = {}
    levels = _kinds(config, "up_block_types")
    for level, attends in levels:
        for layer in range(layers):
            number = level * layers + layer
            blocks[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{number}.0"
            if attends:
                blocks[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{number}.1"
        if level < len(levels) - 1:
            last = level * layers + layers - 1
            blocks[f"up_blocks.{level}.upsamplers.0.conv"] = (
                f"output_blocks.{last}.{2 if attends else 1}.conv"
            )
    return blocks


def _vae_blocks(config: Config) -> dict[str, str]:
    levels, layers = (
        len(cast("list[int]", config["block_out_channels"])),
        cast("int", config["layers_per_block"]),
    )
    blocks: dict[str, str] = {}
    for side in ("encoder", "decoder"):
        blocks[f"{side}.mid_block.resnets.0"] = f"{side}.mid.block_1"
        blocks[f"{side}.mid_block.resnets.1"] = f"{side}.mid.block_2"
        blocks[f"{side}.mid_block.attentions.0"] = f"{side}.mid.attn_1"
        blocks[f"{side}.conv_norm_out"] = f"{side}.norm_out"
    for level in range(levels):
        raised = levels - 1 - level  # the file counts the decoder's levels from the finest
        for layer in range(layers + 1):
            blocks[f"encoder.down_blocks.{level}.resnets.{layer}"] = f"encoder.down.{level}.block.{layer}"
            blocks[f"decoder.up_blocks.{level}.resnets.{layer}"] = f"decoder.up.{raised}.block.{layer}"
        blocks[f"encoder.down_blocks.{level}.downsamplers.0"] = f"encoder.down.{level}.downsample"
        blocks[f"decoder.up_blocks.{level}.upsamplers.0"] = f"decoder.up.{raised}.upsample"
    return blocks


def _clip(name: str, prefix: str) -> MappedKey:
    return MappedKey(prefix + name)


OPEN_CLIP: Mapping[str, str] = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
THIRDS = {"q_proj": 0, "k_proj": 1, "v_proj": 2}


def _open_clip(name: str, prefix: str) -> MappedKey:
    """OpenCLIP stacks query, key and value, and stores its projection the other way round."""
    if name == "text_projection.weight":
        return MappedKey(prefix + "text_projection", "transposed")
    if name in OPEN_CLIP:
        return MappedKey(prefix + OPEN_CLIP[name])
    number, layer, leaf = _split_layer(name)
    block = f"{prefix}transformer.resblocks.{number}."
    part = THIRDS.get(layer.removeprefix("self_attn."))
    if part is not None:
        return MappedKey(f"{block}attn.in_proj_{leaf}", "third", part)
    return MappedKey(f"{block}{OPEN_CLIP_LAYER[layer]}.{leaf}")


def _split_layer(name: str) -> tuple[str, str, str]:
    """`encoder.layers.7.mlp.fc1.bias` to ("7", "mlp.fc1", "bias")."""
    number, rest = name.removeprefix("encoder.layers.").split(".", 1)
    layer, leaf = rest.rsplit(".", 1)
    return number, layer, leaf
