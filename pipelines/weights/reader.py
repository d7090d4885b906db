"""Read the stored weights of a network: as views of memory-mapped files, and checked for NaN and infinity."""

from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pipelines.errors import WeightsError, abbreviate
from pipelines.weights.checkpoint import Checkpoint
from pipelines.weights.header import TensorRef
from pipelines.weights.networks import load_state
from pipelines.weights.sources import FoundWeights, StoredWeight

BLOCK = 1 << 24


def fill_network(
    module: nn.Module, source: Checkpoint, weights: FoundWeights, device: torch.device, dtype: torch.dtype
) -> None:
    """Read the weights of an empty network onto a device; raise WeightsError if one is not finite."""
    load_state(module, read_tensors(source, weights, dtype))
    # not diffusers' own `to`, which logs advice about loaders that are not used here
    nn.Module.to(module, device, dtype)
    check_finite(source, weights, module)


def read_tensors(source: Checkpoint, weights: FoundWeights, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of a network under the network's names.

    Those with a scale are multiplied by it and get `dtype`; the others are views of the files, in the files' dtypes.
    """
    with _open_files(source, weights) as files:
        return {name: _read_weight(source, weight, files, dtype) for name, weight in weights.items()}


def read_tensor(ref: TensorRef) -> Tensor:
    """Return one tensor of a file, as a view of it; raise WeightsError if it cannot be read."""
    try:
        with cast("Any", safe_open)(ref.file, framework="pt") as file:
            return file.get_tensor(ref.key)
    except (SafetensorError, OSError) as error:
        raise WeightsError(ref.file, "it changed while it was read, or cannot be mapped") from error


@contextmanager
def _open_files(source: Checkpoint, weights: FoundWeights) -> Generator[Mapping[Path, Any]]:
    keys = [
        key for weight in weights.values() for key in (weight.mapped.key, weight.scale) if key is not None
    ]
    paths = dict.fromkeys(source.tensors[key].file for key in keys)
    try:
        with ExitStack() as stack:
            opened = {path: cast("Any", safe_open)(path, framework="pt") for path in paths}
            yield {path: stack.enter_context(file) for path, file in opened.items()}
    except (SafetensorError, OSError) as error:
        raise WeightsError(source.path, "it changed while it was read, or cannot be mapped") from error


def _read_weight(
    source: Checkpoint, weight: StoredWeight, files: Mapping[Path, Any], dtype: torch.dtype
) -> Tensor:
    def read(key: str) -> Tensor:
        ref = source.tensors[key]
        return files[ref.file].get_tensor(ref.key)

    stored = read(weight.mapped.key)
    if weight.scale is not None:
        scale = read(weight.scale).float()
        rows = scale.reshape(-1, *(1 for _ in stored.shape[1:])) if scale.numel() > 1 else scale.reshape(())
        stored = (stored.float() * rows).to(dtype)
    return weight.mapped.to_model(stored)


def check_finite(source: Checkpoint, weights: FoundWeights, module: nn.Module) -> None:
    """Raise WeightsError if a weight of a filled network is NaN or infinite, with its key in the source.

    The smallest and largest value show it: 4 GB/s on one CPU core, ten times faster than `isfinite`.
    """
    tensors = module.state_dict()
    extremes = torch.stack([torch.stack(tensor.aminmax()).float() for tensor in tensors.values()])
    # one transfer from the device for all
    are_finite = cast("Any", extremes.isfinite().all(1)).tolist()
    for name, is_finite in zip(tensors, are_finite, strict=True):
        if not is_finite:
            key, dtype = weights[name].mapped.key, tensors[name].dtype
            stored = read_tensors(source, {name: weights[name]}, torch.float32)[name].float()
            reason = f"{abbreviate(key)} contains NaN or infinity; the file is damaged or was merged wrongly"
            if stored.isfinite().all():
                reason = f"{abbreviate(key)} is too large for {str(dtype).removeprefix('torch.')}; set another dtype"
            raise WeightsError(source.path, reason)


def read_ahead(path: Path) -> None:
    """Read a file sequentially into the page cache, at the speed of the disk.

    Copying an uncached memory map to a device would fault it in page by page.
    """
    buffer = bytearray(BLOCK)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
