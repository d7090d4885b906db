"""The demo model's files. They have SDXL's single-file layout, so the loader treats them like any user's checkpoint."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from demo.architecture import demo_architecture
from pipelines.weights.architecture import METADATA_KEY, Architecture
from pipelines.weights.key_map import to_stored
from pipelines.weights.model_plan import model_parts
from pipelines.weights.networks import build_networks

SEED = 20231115
WEIGHTS = Path(__file__).parent / "weights"
DEMO, INPAINTING, VIBE = (
    WEIGHTS / f"{name}.safetensors" for name in ("naiad-demo", "naiad-demo-inpainting", "naiad-demo-vibe")
)
"""The trained files: the model, the inpainting UNet and the image adapter."""
CYANOTYPE_LORA = WEIGHTS / "loras" / "cyanotype.safetensors"


def build_demo(path: Path, channels: int = 4) -> Path:
    """Write an untrained demo model, the same bytes every time, and return its path."""
    architecture = demo_architecture(channels)
    unet, vae, towers = build_networks(architecture)
    modules = [unet.module, vae.module, *(tower.module for tower in towers)]
    weights: list[Mapping[str, Tensor]] = [
        random_weights(module, SEED + k) for k, module in enumerate(modules)
    ]
    write_checkpoint(path, architecture, weights)
    return path


def random_weights(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Return weights that keep activations near unit size: 1 in norms, elsewhere noise scaled by the fan-in."""
    generator = torch.Generator().manual_seed(seed)
    norms = {name for name, part in module.named_modules() if isinstance(part, nn.LayerNorm | nn.GroupNorm)}
    weights: dict[str, Tensor] = {}
    for name, empty in module.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        if owner in norms:
            weights[name] = torch.full(empty.shape, 1.0 if leaf == "weight" else 0.0)
        elif empty.ndim < 2:
            weights[name] = torch.zeros(empty.shape)
        else:
            spread = 0.5 if "embedding." in name else empty[0].numel() ** -0.5
            weights[name] = torch.randn(empty.shape, generator=generator) * spread
    return weights


def write_checkpoint(path: Path, architecture: Architecture, weights: Sequence[Mapping[str, Tensor]]) -> None:
    """Write a model file with the markers and metadata that the server detects it by.

    Args:
        weights: State dicts of UNet, VAE and text encoders, in this order. A file of a UNet has only the first.
    """
    unet, vae, towers = build_networks(architecture)
    parts = model_parts(architecture, unet.module, vae.module, [tower.module for tower in towers])
    stored = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    for part, tensors in zip(parts, weights, strict=False):
        for key, tensor in to_stored(part.keys, tensors).items():
            stored[key] = tensor.half().contiguous()
    metadata = {
        "modelspec.architecture": "stable-diffusion-xl-v1-base",
        "modelspec.prediction_type": "v",
        "modelspec.title": "naiad demo",
        METADATA_KEY: architecture.to_json(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(sorted(stored.items())), path, metadata)
    _sort_metadata(path)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata, which safetensors writes in a different order every time."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        file.write(json.dumps(header, separators=(",", ":")).encode().ljust(length))
