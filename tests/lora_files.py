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


KINDS = (
    "LoRA", "LoCon", "DoRA", "LoHa", "LoKr", "difference", "norm", "IA3 of outputs", "IA3 of inputs", "OFT", "BOFT",
)  # fmt: skip
"""Kinds of changes that `draw_change` makes tensors of."""


def draw_change(kind, shape, seed=0, size=0.2):
    """Random tensors of one kind of change to a weight of a shape, by their roles in files."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns, *kernel = shape if len(shape) > 1 else (shape[0], 1)
    ones = [1] * len(kernel)

    def draw(*size_of):
        return torch.randn(size_of, generator=generator) * size

    lora = {"lora_down.weight": draw(2, columns, *kernel), "lora_up.weight": draw(rows, 2, *ones)}
    magnitude = 1 + draw(rows, 1, *ones).abs()
    blocks = torch.tensor(0.02)  # OFT's alpha limits how far all blocks rotate
    return {
        "LoRA": lambda: lora | {"alpha": torch.tensor(1.0)},
        "LoCon": lambda: {"lora_down.weight": draw(2, columns, *ones), "lora_up.weight": draw(rows, 2, *ones)} | ({"lora_mid.weight": draw(2, 2, *kernel)} if kernel else {}),
        "DoRA": lambda: lora | {"alpha": torch.tensor(1.0), "dora_scale": magnitude},
        "LoHa": lambda: {f"hada_w{side}_{part}": draw(*size_of) for side in (1, 2) for part, size_of in (("a", (rows, 2)), ("b", (2, columns * torch.Size(kernel).numel())))},
        "LoKr": lambda: {"lokr_w1": draw(2, 2), "lokr_w2": draw(rows // 2, columns // 2, *kernel)},
        "difference": lambda: {"diff": draw(*shape), "diff_b": draw(rows)},
        "norm": lambda: {"w_norm": draw(rows), "b_norm": draw(rows)},
        "IA3 of outputs": lambda: {"weight": draw(rows), "on_input": torch.tensor(0)},
        "IA3 of inputs": lambda: {"weight": draw(1, columns, *ones), "on_input": torch.tensor(1)},
        "OFT": lambda: {"oft_blocks": draw(rows // 4, 4, 4), "alpha": blocks, "rescale": 1 + draw(rows, 1, *ones)},
        "BOFT": lambda: {"oft_blocks": draw(2, rows // 4, 4, 4), "rescale": 1 + draw(rows, 1, *ones)},
    }[kind]()  # fmt: skip
