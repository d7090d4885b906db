"""Matches the tensors of a LoRA file with the weights of a model. Needs no torch."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from pipelines.adapters.lora_file import LayerName, LayerTensors, LoraFile
from pipelines.adapters.lora_kinds import LoraKind
from pipelines.errors import WeightsError, abbreviate
from pipelines.weights.header import FLOATS, TensorRef
from pipelines.weights.sources import count_keys

NUMBERS = frozenset({"alpha", "on_input"})
NUMBER_DTYPES = (*FLOATS, "I64", "I32", "I16", "I8", "U8", "BOOL")
"""Roles of tensors that are one number, and the dtypes that trainers write them in."""


@dataclass(frozen=True, slots=True)
class Patch:
    """A change to one weight of a network.

    Attributes:
        folder, weight: the network, and the weight's name in it.
        shape: of the weight.
        layer: the file's name of the layer.
        tensors: those of the change, by role.
    """

    folder: str
    weight: str
    shape: tuple[int, ...]
    layer: LayerName
    kind: str
    tensors: Mapping[str, TensorRef]


@dataclass(frozen=True, slots=True)
class Network:
    """A network that patches can change: its folder, its layers by their names in files, its weights' shapes."""

    folder: str
    layers: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]


def match_lora(file: LoraFile, networks: Iterable[Network]) -> tuple[Patch, ...]:
    """Return the patches of a file to the weights of a model's networks.

    Raises:
        WeightsError: a key fits no weight, or a tensor has another shape, or holds no floats.
    """
    by_folder = {network.folder: network for network in networks}
    patches: list[Patch] = []
    unmatched = list(file.unknown)
    for name, layer in file.layers.items():
        matched = list(_match_layer(file, name, layer, by_folder.get(name.folder)))
        used = {role for patch in matched for role in patch.tensors}
        unmatched += [ref.key for role, ref in layer.tensors.items() if role not in used]
        patches += matched
    # without the alphas, which some trainers also write where nothing is scaled
    left = [key for key in unmatched if not key.endswith(".alpha")]
    if left:
        raise WeightsError(file.path, f"{count_keys('unmatched keys', left)}; it is for another architecture")
    return tuple(patches)


def _match_layer(
    file: LoraFile, name: LayerName, layer: LayerTensors, network: Network | None
) -> Iterator[Patch]:
    """Yield the patches of one layer; none if the network has no such layer."""
    for kind in layer.kinds:
        if kind.refused is not None:
            key = abbreviate(next(iter(layer.tensors.values())).key)
            raise WeightsError(file.path, f"{kind.refused} ({key})")
        path = None if network is None else network.layers.get(name.path)
        weight = f"{path}.{'bias' if kind.changes_bias else 'weight'}"
        if network is not None and path is not None and weight in network.shapes:
            tensors = {role: layer.tensors[role] for role in kind.uses(frozenset(layer.tensors))}
            shape = network.shapes[weight]
            _check_tensors(file.path, kind, tensors, shape)
            yield Patch(name.folder, weight, shape, name, kind.name, tensors)


def _check_tensors(
    path: Path, kind: LoraKind, tensors: Mapping[str, TensorRef], weight: tuple[int, ...]
) -> None:
    for role, ref in tensors.items():
        is_number = role in NUMBERS
        if ref.dtype not in (NUMBER_DTYPES if is_number else FLOATS):
            raise WeightsError(path, f"{abbreviate(ref.key)} holds {ref.dtype}; read are {', '.join(FLOATS)}")
        if (is_number and ref.shape not in ((), (1,))) or 0 in ref.shape:
            raise WeightsError(
                path, f"{abbreviate(ref.key)} has the shape {ref.shape}; it must be one number"
            )
    shapes = {role: ref.shape for role, ref in tensors.items()}
    magnitude = shapes.get("dora_scale")
    if not kind.fits(shapes, weight) or not (magnitude is None or _fits_magnitude(magnitude, weight)):
        ref = next(tensors[role] for role in sorted(tensors.keys() - NUMBERS))
        reason = f"{abbreviate(ref.key)} has the shape {ref.shape}, which does not fit a weight of {weight}"
        raise WeightsError(path, f"{reason}; it is for another architecture")


def _fits_magnitude(magnitude: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Whether DoRA's lengths are those of a weight's rows or, with a first dimension of 1, of its columns."""
    if not magnitude or len(weight) < 2:
        return False
    is_column = len(magnitude) > 1 and magnitude[0] == 1 and weight[0] != 1
    return prod(magnitude) == (weight[1] if is_column else weight[0])
