"""LoRA files made for tests."""

import torch
from safetensors.torch import save_file

from pipelines.adapters.lora_file import read_lora
from pipelines.adapters.lora_patches import Network, match_lora
from pipelines.adapters.lora_tensors import load_patches
from pipelines.job import Lora
from pipelines.weights.checkpoint import fingerprint


def write_lora(path, tensors, metadata=None):
    """Write tensors to a safetensors file and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return path


def name_lora(path, unet=1.0, text=None):
    """A file as jobs name it; both parts have the UNet's strength unless a text strength is given."""
    return Lora(path.stem, path, fingerprint(path), unet, unet if text is None else text)


def random_lora(layers, rank=2, seed=0, size=0.2):
    """Kohya's tensors of a LoRA for some layers, {name in the file: shape of the weight}."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (rows, columns, *kernel) in layers.items():
        ones = (1,) * len(kernel)
        down = torch.randn(rank, columns, *kernel, generator=generator) * size
        tensors[f"{name}.lora_down.weight"] = down
        tensors[f"{name}.lora_up.weight"] = torch.randn(rows, rank, *ones, generator=generator) * size
        tensors[f"{name}.alpha"] = torch.tensor(float(rank))
    return tensors


def load_for_layer(path, shapes, layer="layer", folder="unet"):
    """The patches of a file whose only layer has weights of these shapes, {"weight": shape, "bias": shape}."""
    names = {f"{layer}.{name}": shape for name, shape in shapes.items()}
    file = read_lora(path)
    return load_patches(file, match_lora(file, [Network(folder, {layer: layer}, names)]))
