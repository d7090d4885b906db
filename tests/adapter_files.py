"""Image adapters made for tests: random weights under the keys of released files, and a small image encoder."""

import json
from itertools import count

import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from pipelines.adapters.ip_adapter import ENCODER_KEY
from pipelines.weights.architecture import sd15, sdxl
from pipelines.weights.networks import TorchUNet

ENCODER = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 14, "projection_dim": 20, "hidden_act": "gelu",
}  # fmt: skip
TINY = {"norm_num_groups": 8, "layers_per_block": 1}
UNETS = {
    "sdxl": dict(sdxl().unet) | TINY | {
        "block_out_channels": [16, 32, 32], "attention_head_dim": [1, 2, 4], "transformer_layers_per_block": [1, 1, 2],
        "cross_attention_dim": 48, "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 24 + 6 * 8,
    },
    "sd15": dict(sd15().unet) | TINY | {
        "block_out_channels": [16, 16, 32, 32], "attention_head_dim": 4, "cross_attention_dim": 40,
    },
}  # fmt: skip
"""Small UNets with the block types of each family."""


def build_unet(family):
    """Return a small UNet with random weights."""
    torch.manual_seed(5)
    unet = TorchUNet(UNETS[family])
    unet.module.to_empty(device="cpu")
    for weight in unet.module.parameters():
        torch.nn.init.normal_(weight, std=0.15)
    return unet


def make_encoder():
    """Return the small image encoder, with random weights."""
    torch.manual_seed(6)
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**ENCODER)).eval()


def make_adapter(kind, unet, seed=7):
    """Return the tensors of an adapter for a UNet, under the keys of released files."""
    generator, numbers = torch.Generator().manual_seed(seed), count(1, 2)
    width = unet.attention_shapes[0][1]

    def draw(*shape):
        return torch.randn(shape, generator=generator) * 0.3

    stored = {}
    for inner, outer in unet.attention_shapes:
        number = next(numbers)
        stored |= {f"ip_adapter.{number}.to_{part}_ip.weight": draw(inner, outer) for part in "kv"}
    projection = make_projection(draw, width) if kind == "base" else make_resampler(draw, width)
    return stored | {f"image_proj.{key}": tensor for key, tensor in projection.items()}


def make_projection(draw, width):
    return {
        "proj.weight": draw(4 * width, 20),
        "proj.bias": draw(4 * width),
        "norm.weight": draw(width),
        "norm.bias": draw(width),
    }


def make_resampler(draw, width, inner=32, heads=2):
    stored = {
        "latents": draw(1, 6, inner), "proj_in.weight": draw(inner, 24), "proj_in.bias": draw(inner),
        "proj_out.weight": draw(width, inner), "proj_out.bias": draw(width),
        "norm_out.weight": draw(width), "norm_out.bias": draw(width),
    }  # fmt: skip
    for layer in range(4):
        shapes = {
            "0.norm1.weight": (inner,), "0.norm1.bias": (inner,), "0.norm2.weight": (inner,), "0.norm2.bias": (inner,),
            "0.to_q.weight": (64 * heads, inner), "0.to_kv.weight": (128 * heads, inner),
            "0.to_out.weight": (inner, 64 * heads), "1.0.weight": (inner,), "1.0.bias": (inner,),
            "1.1.weight": (4 * inner, inner), "1.3.weight": (inner, 4 * inner),
        }  # fmt: skip
        stored |= {f"layers.{layer}.{key}": draw(*shape) for key, shape in shapes.items()}
    return stored


def save_adapter(path, kind, unet, seed=7, with_encoder=True):
    """Write an adapter file; return it."""
    stored = make_adapter(kind, unet, seed)
    if with_encoder:
        stored |= {f"image_encoder.{key}": tensor for key, tensor in make_encoder().state_dict().items()}
    save_file({key: tensor.contiguous() for key, tensor in stored.items()}, path, describe_encoder())
    return path


def save_encoder(path):
    """Write the image encoder alone; return its file."""
    save_file(
        {key: tensor.contiguous() for key, tensor in make_encoder().state_dict().items()},
        path,
        describe_encoder(),
    )
    return path


def describe_encoder():
    return {ENCODER_KEY: json.dumps(ENCODER)}
