"""Checkpoints made for a test: headers over empty files, and small files to merge."""

import json
import struct

import torch
from safetensors.torch import save_file

from pipelines.weights.key_map import UNET

SDXL = {
    "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
    "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (640, 2048),
    "model.diffusion_model.middle_block.1.transformer_blocks.9.norm1.weight": (1280,),
    "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3),
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": (768,),
    "conditioner.embedders.1.model.ln_final.weight": (1280,),
}


MARKERS = {"v_pred": (0,), "ztsnr": (0,)}


SD1 = {
    "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
    "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3),
    "cond_stage_model.transformer.text_model.final_layer_norm.weight": (768,),
}


def hollow(path, shapes, metadata=None):
    """A file of the right header and size whose tensors are a hole in the disk."""
    header, start = {}, 0
    for key, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header | ({"__metadata__": metadata} if metadata else {})).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + start)
    return path


FOLDER = {
    "unet/diffusion_pytorch_model.fp16": {
        "conv_in.weight": (320, 4, 3, 3),
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (640, 2048),
        "add_embedding.linear_1.weight": (1280, 2816),
        "mid_block.attentions.0.transformer_blocks.9.norm1.weight": (1280,),
    },
    "vae/diffusion_pytorch_model": {"decoder.conv_in.weight": (512, 4, 3, 3)},
    "text_encoder/model": {"text_model.final_layer_norm.weight": (768,)},
    "text_encoder_2/model": {"text_model.final_layer_norm.weight": (1280,)},
}


CONV_IN = f"{UNET}input_blocks.0.0.weight"


CROSS = f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"


OUT = f"{UNET}out.2.weight"


def weights(seed, channels=4, dtype=torch.float16):
    """What of SDXL's UNet a file is recognised by, at random, and the last convolution."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {key: shape for key, shape in SDXL.items() if key.startswith(UNET)} | {OUT: (4, 320, 3, 3)}
    shapes[CONV_IN] = (320, channels, 3, 3)
    return {key: torch.randn(shape, generator=generator).to(dtype) for key, shape in shapes.items()}


def saved(path, tensors, metadata=None):
    path.parent.mkdir(exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return path


def three(folder, inpaint=None, fine_tune=None, base=None, metadata=None):
    """Three files that fit together, but for what is given."""
    return (
        saved(folder / "inpaint.safetensors", weights(1, 9) | (inpaint or {})),
        saved(folder / "tune.safetensors", weights(2) | (fine_tune or {}), metadata),
        saved(folder / "base.safetensors", weights(3) | (base or {})),
    )


def same_bits(one, other):
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
