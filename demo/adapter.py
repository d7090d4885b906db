"""The demo's image adapter, an IP-Adapter (Ye et al. 2023) with its own small image encoder, as it is trained.

A reference image becomes eight tokens. Every cross-attention of the UNet gets a second one, to these tokens. The server
loads the file like any other adapter (`pipelines.adapters.vibe`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from demo.architecture import NARROW, WIDE
from pipelines.adapters.ip_adapter import ENCODER_KEY
from pipelines.adapters.vibe import MEAN, STD
from pipelines.types import Pixels

INPUT_SIZE, TOKENS, EMBEDDING_WIDTH = 224, 8, 96
VISION_CONFIG: Mapping[str, object] = {
    "hidden_size": EMBEDDING_WIDTH,
    "intermediate_size": 4 * EMBEDDING_WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "image_size": INPUT_SIZE,
    "patch_size": 32,
    "projection_dim": EMBEDDING_WIDTH,
}


def build_encoder() -> CLIPVisionModelWithProjection:
    """Return an untrained image encoder."""
    return CLIPVisionModelWithProjection(cast("Any", CLIPVisionConfig)(**VISION_CONFIG))


def build_projection() -> ImageProjection:
    """Return an untrained projection from embeddings (B, width) to tokens as wide as the text's."""
    return ImageProjection(EMBEDDING_WIDTH, NARROW + WIDE, TOKENS)


class Adapter(nn.Module):
    """The image encoder, its projection to tokens, and keys and values for each cross-attention.

    Keys and values start as copies of those for the text, as in the paper.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.encoder = build_encoder()
        self.projection = build_projection()
        names = [name for name in cast("Any", unet).attn_processors if ".attn2." in name]
        self.names = [name.removesuffix(".processor") for name in names]
        # `looks` is a key in training checkpoints
        self.looks = nn.ModuleList(_build_processor(unet.get_submodule(name)) for name in self.names)

    def forward(self, references: Tensor) -> Tensor:
        """Return the tokens (B, 8, width) of preprocessed references (B, 3, 224, 224)."""
        return self.projection(cast("Any", self.encoder)(references).image_embeds)

    def empty_tokens(self, count: int) -> Tensor:
        """Return the tokens for no reference, those of an embedding of zeros."""
        return self.projection(torch.zeros(count, EMBEDDING_WIDTH))

    def install(self, unet: nn.Module, scale: float = 1.0) -> None:
        """Add the attention to image tokens to a UNet, which then takes (context, [tokens]) as its context.

        Args:
            scale: Factor of that attention's output.
        """
        for processor in self.looks:
            cast("Any", processor).scale = [scale]
        processors = dict(zip(self.names, self.looks, strict=True))
        names = cast("Any", unet).attn_processors
        cast("Any", unet).set_attn_processor(
            {name: processors.get(name.removesuffix(".processor")) or AttnProcessor2_0() for name in names}
        )


def _build_processor(attention: nn.Module) -> nn.Module:
    """Return a processor that adds attention to image tokens, starting with the text's keys and values."""
    text = cast("Any", attention)
    processor = IPAdapterAttnProcessor2_0(text.to_q.out_features, NARROW + WIDE, (TOKENS,))
    for image_layer, text_layer in ((processor.to_k_ip, text.to_k), (processor.to_v_ip, text.to_v)):
        cast("Any", image_layer)[0].load_state_dict(text_layer.state_dict())
    return processor


def preprocess(image: Pixels) -> Tensor:
    """Center an image of at most 224x224 on black and normalize it as CLIP does; returns (3, 224, 224)."""
    height, width = image.shape[:2]
    canvas = np.zeros((INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
    top, left = (INPUT_SIZE - height) // 2, (INPUT_SIZE - width) // 2
    canvas[top : top + height, left : left + width] = image
    values = (torch.from_numpy(canvas).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return values.permute(2, 0, 1)


def save_adapter(adapter: Adapter, file: Path) -> None:
    """Write an adapter with the keys of published IP-Adapters, and its encoder with CLIP's behind `image_encoder.`."""
    stored: dict[str, Tensor] = {}
    for index, processor in enumerate(adapter.looks):
        keys, values = (cast("Any", layer)[0].weight for layer in (processor.to_k_ip, processor.to_v_ip))
        stored[f"ip_adapter.{2 * index + 1}.to_k_ip.weight"] = keys
        stored[f"ip_adapter.{2 * index + 1}.to_v_ip.weight"] = values
    for name, tensor in adapter.projection.state_dict().items():
        stored["image_proj." + name.replace("image_embeds", "proj")] = tensor
    for name, tensor in adapter.encoder.state_dict().items():
        stored[f"image_encoder.{name}"] = tensor
    metadata = {
        ENCODER_KEY: json.dumps(VISION_CONFIG),
        "modelspec.title": "naiad demo image adapter",
    }
    save_file({name: tensor.half().contiguous() for name, tensor in sorted(stored.items())}, file, metadata)


def load_adapter(file: Path, unet: nn.Module) -> Adapter:
    """Load an adapter from its file, for a UNet of the shape it was trained with."""
    adapter, stored = Adapter(unet), load_file(file)
    state: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        part, _, rest = name.partition(".")
        if part == "ip_adapter":
            index, layer, _ = rest.split(".")
            state[f"looks.{(int(index) - 1) // 2}.{layer}.0.weight"] = tensor.float()
        elif part == "image_proj":
            state["projection." + rest.replace("proj.", "image_embeds.")] = tensor.float()
        else:
            state[f"encoder.{rest}"] = tensor.float()
    adapter.load_state_dict(state)
    return adapter.requires_grad_(False).eval()
