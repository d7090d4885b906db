"""Fill networks with their stored weights, which are checked for NaN and infinity.

On a CPU weights are views of memory-mapped files if they have the dtype they are needed in; others are read block by
block (stream.py).
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pipelines.errors import WeightsError, abbreviate
from pipelines.weights.checkpoint import Checkpoint
from pipelines.weights.header import TensorRef
from pipelines.weights.key_map import MappedKey
from pipelines.weights.networks import load_state
from pipelines.weights.sources import FoundWeights, StoredWeight
from pipelines.weights.stream import DTYPES, stream_tensors

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class EmptyNetwork:
    """A network without weights, where they are in files, and the dtype that they get."""

    module: nn.Module
    source: Checkpoint
    weights: FoundWeights
    dtype: torch.dtype


class _Stored(NamedTuple):
    """A tensor of a file, the dtype it is needed in, and its scale."""

    ref: TensorRef
    dtype: torch.dtype
    scale: TensorRef | None

    def is_mapped(self, device: torch.device) -> bool:
        """Whether the file's own bytes can be used, without a copy."""
        return can_map(device) and self.scale is None and DTYPES[self.ref.dtype] == self.dtype


class _Weight(NamedTuple):
    """A weight of one of the networks that are filled."""

    network: int
    name: str
    mapped: MappedKey


def can_map(device: torch.device) -> bool:
    """Return whether memory-mapped files are memory of a device."""
    return device.type == "cpu"


def fill_network(
    module: nn.Module, source: Checkpoint, weights: FoundWeights, device: torch.device, dtype: torch.dtype
) -> None:
    """Read the weights of an empty network onto a device; raise WeightsError if one is not finite."""
    fill_networks([EmptyNetwork(module, source, weights, dtype)], device)


def fill_networks(networks: Sequence[EmptyNetwork], device: torch.device) -> None:
    """Read the weights of empty networks onto a device, in the order of the files.

    On a CPU those that have their dtype and no scale become views of memory-mapped files. They are read ahead of the
    check for NaN and infinity, which would otherwise wait for the disk page by page.

    Raises:
        WeightsError: a weight is not finite, or a file cannot be read or has changed.
    """
    stored = _group_weights(networks)
    tensors: list[dict[str, Tensor]] = [{} for _ in networks]
    extremes: dict[tuple[int, str], Tensor] = {}
    for each, tensor in _read_stored(list(stored), device):
        for weight in stored[each]:
            value = weight.mapped.to_model(tensor).to(each.dtype)
            tensors[weight.network][weight.name] = value
            extremes[weight.network, weight.name] = _find_extremes(value)
    for index, name in _find_infinite(extremes):
        network = networks[index]
        raise _explain_infinite(network.source, network.weights[name], network.dtype)
    for network, values in zip(networks, tensors, strict=True):
        load_state(network.module, values)
        # not diffusers' own `to`, which logs advice about loaders that are not used here
        nn.Module.to(network.module, device, network.dtype)


def _group_weights(networks: Sequence[EmptyNetwork]) -> dict[_Stored, list[_Weight]]:
    """The weights that each stored tensor fills: one, or the three that are stacked in it."""
    grouped: dict[_Stored, list[_Weight]] = {}
    for index, network in enumerate(networks):
        tensors = network.source.tensors
        for name, weight in network.weights.items():
            scale = None if weight.scale is None else tensors[weight.scale]
            stored = _Stored(tensors[weight.mapped.key], network.dtype, scale)
            grouped.setdefault(stored, []).append(_Weight(index, name, weight.mapped))
    return grouped


def _read_stored(stored: Sequence[_Stored], device: torch.device) -> Generator[tuple[_Stored, Tensor]]:
    """Yield the tensors of files, with their scales applied; those that are not mapped, on the device."""
    mapped = [each.ref for each in stored if each.is_mapped(device)]
    with _open_files(stored[0].ref.file if stored else Path(), mapped) as files:
        for index, tensor in stream_tensors([_choose_target(each, device) for each in stored], device):
            each = stored[index]
            if tensor is None:
                yield each, files[each.ref.file].get_tensor(each.ref.key)
            elif each.scale is None:
                yield each, tensor
            else:
                with each.scale.file.open("rb") as file:
                    scale = read_float(each.scale, file).to(device)
                yield each, _apply_scale(tensor, scale)


def _choose_target(stored: _Stored, device: torch.device) -> tuple[TensorRef, torch.dtype | None]:
    if stored.is_mapped(device):
        return stored.ref, None
    return stored.ref, stored.dtype if stored.scale is None else torch.float32


def _apply_scale(tensor: Tensor, scale: Tensor) -> Tensor:
    """Multiply a tensor by one factor, or each of its rows by its own."""
    rows = scale.reshape(-1, *(1 for _ in tensor.shape[1:])) if scale.numel() > 1 else scale.reshape(())
    return tensor.float() * rows


def read_tensors(source: Checkpoint, weights: FoundWeights, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of a network under the network's names.

    Those with a scale are multiplied by it and get `dtype`; the others are views of the files, in the files' dtypes.
    """
    keys = [
        key for weight in weights.values() for key in (weight.mapped.key, weight.scale) if key is not None
    ]
    with _open_files(source.path, (source.tensors[key] for key in keys)) as files:
        return {name: _read_weight(source, weight, files, dtype) for name, weight in weights.items()}


def read_float(ref: TensorRef, stream: BinaryIO) -> Tensor:
    """Return one tensor of an opened file in float32; raise WeightsError if it is not finite, or cut off.

    It is read, not mapped: a file that a trainer overwrites meanwhile must not end the process.
    """
    stream.seek(ref.start)
    content = bytearray(stream.read(ref.end - ref.start))
    if len(content) != ref.end - ref.start:
        raise WeightsError(ref.file, "it became shorter while it was read")
    tensor = torch.frombuffer(content, dtype=DTYPES[ref.dtype]).reshape(ref.shape).float()
    if not tensor.isfinite().all():
        raise WeightsError(ref.file, f"{abbreviate(ref.key)} contains NaN or infinity; the file is damaged")
    return tensor


@contextmanager
def _open_files(path: Path, refs: Iterable[TensorRef]) -> Generator[Mapping[Path, Any]]:
    """Map the files of a checkpoint's tensors into memory; `path` is the checkpoint's, for messages."""
    try:
        with ExitStack() as stack:
            files = dict.fromkeys(ref.file for ref in refs)
            opened = {file: cast("Any", safe_open)(file, framework="pt") for file in files}
            yield {file: stack.enter_context(content) for file, content in opened.items()}
    except (SafetensorError, OSError) as error:
        raise WeightsError(path, "it changed while it was read, or cannot be mapped") from error


def _read_weight(
    source: Checkpoint, weight: StoredWeight, files: Mapping[Path, Any], dtype: torch.dtype
) -> Tensor:
    def read(key: str) -> Tensor:
        ref = source.tensors[key]
        return files[ref.file].get_tensor(ref.key)

    stored = read(weight.mapped.key)
    if weight.scale is not None:
        stored = _apply_scale(stored, read(weight.scale).float()).to(dtype)
    return weight.mapped.to_model(stored)


def check_finite(source: Checkpoint, weights: FoundWeights, module: nn.Module) -> None:
    """Raise WeightsError if a weight of a filled network is NaN or infinite, with its key in the source."""
    tensors = module.state_dict()
    for name in _find_infinite({name: _find_extremes(tensor) for name, tensor in tensors.items()}):
        raise _explain_infinite(source, weights[name], tensors[name].dtype)


def _find_extremes(tensor: Tensor) -> Tensor:
    """The smallest and the largest value, which show NaN and infinity ten times faster than `isfinite` does."""
    return torch.stack(tensor.aminmax()).float()


def _find_infinite(extremes: Mapping[Key, Tensor]) -> list[Key]:
    """The keys of tensors that are not finite, with one transfer from the device for all."""
    if not extremes:
        return []
    are_finite = cast("Any", torch.stack(list(extremes.values())).isfinite().all(1)).tolist()
    return [key for key, is_finite in zip(extremes, are_finite, strict=True) if not is_finite]


def _explain_infinite(source: Checkpoint, weight: StoredWeight, dtype: torch.dtype) -> WeightsError:
    """The error for a weight that is not finite in a dtype."""
    stored = read_tensors(source, {"": weight}, torch.float32)[""].float()
    reason = "contains NaN or infinity; the file is damaged or was merged wrongly"
    if stored.isfinite().all():
        reason = f"is too large for {str(dtype).removeprefix('torch.')}; set another dtype"
    return WeightsError(source.path, f"{abbreviate(weight.mapped.key)} {reason}")
