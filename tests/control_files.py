"""ControlNets made for tests: random weights in files of every layout, for small models."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.controlnets.controlnet_union import ControlNetUnionModel
from safetensors.torch import save_file
from sd15_files import small_sd15

from demo.architecture import demo_architecture
from pipelines.job import Control, RgbImage
from pipelines.weights.architecture import METADATA_KEY, Architecture
from pipelines.weights.checkpoint import fingerprint
from pipelines.weights.key_map import map_control_keys

ARCHITECTURES = {"sdxl": demo_architecture(), "sd15": small_sd15()}
HINTS = 4, 6, 8, 12
"""Widths of the hint encoder."""
UNET_ONLY = {"in_channels", "out_channels", "sample_size", "up_block_types"}


def build_control(
    architecture: Architecture, modes: int | None = None, seed: int = 1, **settings: Any
) -> Any:
    """Return diffusers' own ControlNet, or its union with `modes` control types, with random weights."""
    config: dict[str, Any] = {
        key: value for key, value in architecture.unet.items() if key not in UNET_ONLY
    } | settings
    config["conditioning_embedding_out_channels"] = HINTS
    width = config["block_out_channels"][0]
    if modes is None:
        network = ControlNetModel(**config)
    else:
        del config["mid_block_type"]
        config["addition_time_embed_dim"] = config["addition_time_embed_dim"] or 32
        union = {"num_control_type": modes, "num_trans_channel": width, "num_proj_channel": width}
        network = ControlNetUnionModel(**config, **union)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in network.named_parameters():
        gain = 2.5 if name.startswith("controlnet_cond_embedding") else 0.7  # so that the map matters
        spread = 0.1 if weight.ndim < 2 else gain * weight[0].numel() ** -0.5
        torch.nn.init.normal_(weight, 0.0, spread, generator=generator)
    return network.eval().requires_grad_(False)


def save_control(path: Path, network: Any, architecture: Architecture, layout: str = "diffusers") -> Path:
    """Write a ControlNet to a file or, where `path` has no suffix, to a diffusers folder; return the path.

    Args:
        layout: "original", "bare" (without a prefix), or diffusers'.
    """
    tensors = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    if layout in ("original", "bare"):
        keys, prefix = (
            map_control_keys(tensors, architecture.unet),
            "" if layout == "bare" else "control_model.",
        )
        tensors = {prefix + keys[name].key: tensor for name, tensor in tensors.items()}
    file = path
    if not path.suffix:
        network.save_config(path)
        file = path / "diffusion_pytorch_model.safetensors"
    save_file(tensors, file, {METADATA_KEY: architecture.to_json()})
    return path


def draw_map(width: int, height: int, seed: int = 0) -> RgbImage:
    """Return a control map of noise."""
    generator = torch.Generator().manual_seed(seed)
    return RgbImage(
        width, height, bytes(torch.randint(0, 256, (height * width * 3,), generator=generator).tolist())
    )


def name_control(path: Path, image: RgbImage, **others: Any) -> Control:
    """Return a control as jobs name it."""
    return Control(path.stem, path, fingerprint(path), image, **others)
