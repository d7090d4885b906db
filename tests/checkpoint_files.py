"""Checkpoints made for tests: headers over empty files, and small files to merge."""

import json
import struct

import torch
from safetensors.torch import save_file

from pipelines.weights.checkpoint import UNET_PREFIX

CONV_IN = f"{UNET_PREFIX}input_blocks.0.0.weight"
CONV_OUT = f"{UNET_PREFIX}out.2.weight"
CROSS = f"{UNET_PREFIX}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"

SDXL = {
    CONV_IN: (320, 4, 3, 3),
    CROSS: (640, 2048),
    f"{UNET_PREFIX}middle_block.1.transformer_blocks.9.norm1.weight": (1280,),
    "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3),
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": (768,),
    "conditioner.embedders.1.model.ln_final.weight": (1280,),
}
"""Shapes of the tensors by which an SDXL file is detected."""

MARKERS = {"v_pred": (0,), "ztsnr": (0,)}

SD1 = {
    CONV_IN: (320, 4, 3, 3),
    f"{UNET_PREFIX}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
    "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3),
    "cond_stage_model.transformer.text_model.final_layer_norm.weight": (768,),
}

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
"""The same for the files of a diffusers folder."""


def hollow(path, shapes, metadata=None):
    """Write a float16 file with the right header and size, whose tensors are holes on the disk."""
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


def hollow_folder(path, scheduler=None, **configs):
    """Write a diffusers folder of SDXL; `configs` are the components' config.json."""
    for name, shapes in FOLDER.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        hollow(path / f"{name}.safetensors", shapes)
    for part, config in configs.items():
        (path / part / "config.json").write_text(json.dumps(config))
    if scheduler is not None:
        (path / "scheduler").mkdir()
        (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return path


def random_unet(seed, channels=4, dtype=torch.float16):
    """Random values for the tensors by which SDXL's UNet is detected, and for the last convolution."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {key: shape for key, shape in SDXL.items() if key.startswith(UNET_PREFIX)}
    shapes[CONV_OUT] = (4, 320, 3, 3)
    shapes[CONV_IN] = (320, channels, 3, 3)
    return {key: torch.randn(shape, generator=generator).to(dtype) for key, shape in shapes.items()}


def save(path, tensors, metadata=None):
    """Write tensors to a safetensors file and return its path."""
    path.parent.mkdir(exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return path


def save_sources(folder, inpaint=None, fine_tune=None, base=None, metadata=None):
    """Write three files that can be merged, each changed by the tensors given for it."""
    return (
        save(folder / "inpaint.safetensors", random_unet(1, 9) | (inpaint or {})),
        save(folder / "tune.safetensors", random_unet(2) | (fine_tune or {}), metadata),
        save(folder / "base.safetensors", random_unet(3) | (base or {})),
    )


def are_identical(first, second):
    """Whether two tensors agree in dtype, shape and bits."""
    assert (first.dtype, first.shape) == (second.dtype, second.shape)
    return torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))
