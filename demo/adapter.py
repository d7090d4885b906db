"""The demo's image adapter: IP-Adapter's way (Ye et al. 2023), with a small image encoder of its own.

A reference becomes a few tokens; beside every cross-attention to the text a second one looks at them.
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
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""CLIP's own, of the three channels."""


def build_encoder() -> CLIPVisionModelWithProjection:
    """An image encoder that has learned nothing."""
    return CLIPVisionModelWithProjection(cast("Any", CLIPVisionConfig)(**VISION_CONFIG))


def build_projection() -> ImageProjection:
    """From an embedding (B, width) to tokens like those of a text, untrained."""
    return ImageProjection(EMBEDDING_WIDTH, NARROW + WIDE, TOKENS)


class Adapter(nn.Module):
    """The image encoder, its projection to tokens, and the keys and values of each cross-attention.

    These begin as the UNet's own for the text, as the paper has it.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.encoder = build_encoder()
        self.projection = build_projection()
        names = [name for name in cast("Any", unet).attn_processors if ".attn2." in name]
        self.names = [name.removesuffix(".processor") for name in names]
        self.looks = nn.ModuleList(_build_image_attention(unet.get_submodule(name)) for name in self.names)

    def forward(self, references: Tensor) -> Tensor:
        """Prepared references (B, 3, 224, 224) to tokens (B, 8, width)."""
        return self.projection(cast("Any", self.encoder)(references).image_embeds)

    def empty_tokens(self, count: int) -> Tensor:
        """The tokens of no reference at all, an embedding of zeros."""
        return self.projection(torch.zeros(count, EMBEDDING_WIDTH))

    def install(self, unet: nn.Module, scale: float = 1.0) -> None:
        """Have a UNet look at tokens, which it is then given beside its text: (context, [tokens])."""
        for look in self.looks:
            cast("Any", look).scale = [scale]
        own = dict(zip(self.names, self.looks, strict=True))
        names = cast("Any", unet).attn_processors
        cast("Any", unet).set_attn_processor(
            {name: own.get(name.removesuffix(".processor")) or AttnProcessor2_0() for name in names}
        )


def _build_image_attention(attention: nn.Module) -> nn.Module:
    """A second attention beside one to the text."""
    own = cast("Any", attention)
    look = IPAdapterAttnProcessor2_0(own.to_q.out_features, NARROW + WIDE, (TOKENS,))
    for mine, texts in ((look.to_k_ip, own.to_k), (look.to_v_ip, own.to_v)):
        cast("Any", mine)[0].load_state_dict(texts.state_dict())
    return look


def preprocess(picture: Pixels) -> Tensor:
    """A picture of at most 224 pixels a side on black, (3, 224, 224), as CLIP normalizes it."""
    height, width = picture.shape[:2]
    whole = np.zeros((INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
    top, left = (INPUT_SIZE - height) // 2, (INPUT_SIZE - width) // 2
    whole[top : top + height, left : left + width] = picture
    values = (torch.from_numpy(whole).float() / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    return values.permute(2, 0, 1)


def save_adapter(adapter: Adapter, file: Path) -> None:
    """Write an adapter under the public adapters' keys, its encoder under CLIP's behind `image_encoder.`."""
    stored: dict[str, Tensor] = {}
    for place, look in enumerate(adapter.looks):
        keys, values = (cast("Any", side)[0].weight for side in (look.to_k_ip, look.to_v_ip))
        stored[f"ip_adapter.{2 * place + 1}.to_k_ip.weight"] = keys
        stored[f"ip_adapter.{2 * place + 1}.to_v_ip.weight"] = values
    for name, tensor in adapter.projection.state_dict().items():
        stored["image_proj." + name.replace("image_embeds", "proj")] = tensor
    for name, tensor in adapter.encoder.state_dict().items():
        stored[f"image_encoder.{name}"] = tensor
    metadata = {
        "naiad.image_encoder": json.dumps(VISION_CONFIG),
        "modelspec.title": "naiad demo image adapter",
    }
    save_file({name: tensor.half().contiguous() for name, tensor in sorted(stored.items())}, file, metadata)


def load_adapter(file: Path, unet: nn.Module) -> Adapter:
    """An adapter from its file, for a UNet of the shape it was trained on."""
    adapter, stored = Adapter(unet), load_file(file)
    state: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        part, _, rest = name.partition(".")
        if part == "ip_adapter":
            place, side, _ = rest.split(".")
            state[f"looks.{(int(place) - 1) // 2}.{side}.0.weight"] = tensor.float()
        elif part == "image_proj":
            state["projection." + rest.replace("proj.", "image_embeds.")] = tensor.float()
        else:
            state[f"encoder.{rest}"] = tensor.float()
    adapter.load_state_dict(state)
    return adapter.requires_grad_(False).eval()
