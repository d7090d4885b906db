"""LoRA files: read from their headers, recognized, and matched with the weights of a model. Needs no torch."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path
from typing import Any, NamedTuple, cast

from pipelines.adapters.lora_keys import LoraKey, parse_key
from pipelines.adapters.lora_kinds import KINDS, LoraKind, Shapes, rank_of
from pipelines.errors import WeightsError, abbreviate
from pipelines.weights.families import FAMILIES
from pipelines.weights.header import FLOATS, TensorRef, read_header
from pipelines.weights.sources import count_keys

EMBEDDINGS = "bundle_emb."
"""Textual inversions that ComfyUI packs into the same file."""
OTHER_MODELS = {
    "double_blocks_": "Flux",
    "single_transformer_blocks_": "Flux",
    "joint_blocks_": "Stable Diffusion 3",
    "transformer_blocks_0_attn_add_q_proj": "Stable Diffusion 3",
}
"""Parts of layers' paths that only models of families that cannot run have."""
NO_SHAPE: tuple[int, ...] = ()
NUMBERS = frozenset({"alpha", "on_input"})
NUMBER_DTYPES = (*FLOATS, "I64", "I32", "I16", "I8", "U8", "BOOL")
"""Roles of tensors that are one number, and the dtypes that trainers write them in."""
DIFFUSERS_METADATA = "lora_adapter_metadata"
"""Where diffusers keeps peft's settings, alpha among them, as JSON."""


class LayerName(NamedTuple):
    """A layer as a file names it: the network's folder, and the path with underscores."""

    folder: str
    path: str


@dataclass(frozen=True, slots=True)
class LayerTensors:
    """The tensors of one layer, by role."""

    tensors: Mapping[str, TensorRef]

    @property
    def shapes(self) -> Shapes:
        """The tensors' shapes."""
        return {role: ref.shape for role, ref in self.tensors.items()}

    @property
    def kinds(self) -> tuple[LoraKind, ...]:
        """The kinds of change that the tensors are enough for."""
        roles = frozenset(self.tensors)
        return tuple(kind for kind in KINDS if kind.matches(roles))


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A file that changes a model's weights.

    Attributes:
        unknown: keys that no known kind of adapter has.
        embeddings: how many tensors are textual inversions.
    """

    path: Path
    layers: Mapping[LayerName, LayerTensors]
    metadata: Mapping[str, str]
    unknown: tuple[str, ...] = ()
    embeddings: int = 0

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the kinds of change in the file, DoRA among them, the most frequent first."""
        counts: dict[str, int] = {}
        for layer in self.layers.values():
            for kind in layer.kinds:
                name = "DoRA" if "dora_scale" in layer.tensors and not kind.changes_bias else kind.name
                counts[name] = counts.get(name, 0) + 1
        return tuple(sorted(counts, key=lambda name: (-counts[name], name)))

    @property
    def folders(self) -> tuple[str, ...]:
        """The networks that it changes, by their folders in a diffusers layout."""
        return tuple(
            sorted(
                {name.folder for name in self.layers}, key=("unet", "text_encoder", "text_encoder_2").index
            )
        )

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of its matrices."""
        ranks = {rank_of(kind.name, layer.shapes) for layer in self.layers.values() for kind in layer.kinds}
        return tuple(sorted(rank for rank in ranks if rank is not None))

    @property
    def family(self) -> str | None:
        """The family of model that it fits by the width of the text, or by a second text encoder; None if unknown."""
        keys = (name for name in self.layers if name.folder == "unet" and name.path.endswith("attn2_to_k"))
        widths = {_input_width(self.layers[name]) for name in keys}
        has_two = "text_encoder_2" in self.folders
        families = FAMILIES.values()
        fitting = [family for family in families if family.text_width in widths]
        fitting += [family for family in families if has_two and len(family.text_prefixes) > 1]
        return fitting[0].name if fitting else None

    def check_family(self, family: str) -> None:
        """Raise WeightsError if the file is for another family of models."""
        title = FAMILIES[family].title
        for part, other in OTHER_MODELS.items():
            if any(part in f"{name.path}_" for name in self.layers):
                raise WeightsError(
                    self.path, f"it is for {other}, the model is {title}; choose one for {title}"
                )
        own = self.family
        if own is not None and own != family:
            reason = f"it is for {FAMILIES[own].title}, the model is {title}; choose one for {title}"
            raise WeightsError(self.path, reason)

    def alpha_of(self, name: LayerName, rank: int) -> float:
        """Return the alpha of a layer without one of its own: peft's, if diffusers wrote it, else the rank."""
        try:
            fields = cast("dict[str, Any]", json.loads(self.metadata.get(DIFFUSERS_METADATA, "{}")))
            patterns = cast("dict[str, Any]", fields.get(f"{name.folder}.alpha_pattern") or {})
            own = (value for key, value in patterns.items() if _ends_with(name.path, key))
            alpha = next(own, fields.get(f"{name.folder}.lora_alpha"))
            alpha = float(rank if alpha is None else alpha)
            return alpha * sqrt(rank) if fields.get(f"{name.folder}.use_rslora") else alpha
        except (AttributeError, RecursionError, TypeError, ValueError):
            return float(rank)


def _ends_with(path: str, key: str) -> bool:
    return f"_{path}".endswith("_" + key.replace(".", "_"))


def _input_width(layer: LayerTensors) -> int | None:
    shapes = layer.shapes
    for role in ("down", "hada_w1_b", "diff"):
        shape = shapes.get(role, NO_SHAPE)
        if len(shape) > 1:
            return shape[1]
    first, second = (shapes.get(f"lokr_w{side}", shapes.get(f"lokr_w{side}_b", NO_SHAPE)) for side in (1, 2))
    return first[1] * second[1] if len(first) == len(second) == 2 else None


def read_lora(path: Path) -> LoraFile:
    """Read a LoRA's header.

    Raises:
        WeightsError: it cannot be read, or is no LoRA; one line with file and reason.
    """
    header = read_header(path)
    layers: dict[LayerName, dict[str, TensorRef]] = {}
    unknown: list[str] = []
    embeddings = 0
    for key, ref in header.tensors.items():
        parsed = parse_key(key)
        if key.startswith(EMBEDDINGS):
            embeddings += 1
        elif parsed is None:
            unknown.append(key)
        else:
            _add(layers, parsed, ref, path)
    read = {name: LayerTensors(tensors) for name, tensors in layers.items()}
    known = {name: layer for name, layer in read.items() if layer.kinds}
    unknown += [ref.key for name in read.keys() - known.keys() for ref in read[name].tensors.values()]
    if not known:
        raise WeightsError(path, "no LoRA: it has no tensors of any kind that changes a model's weights")
    return LoraFile(path, known, header.metadata, tuple(unknown), embeddings)


def _add(layers: dict[LayerName, dict[str, TensorRef]], parsed: LoraKey, ref: TensorRef, path: Path) -> None:
    roles = layers.setdefault(LayerName(parsed.folder, parsed.layer), {})
    if parsed.role in roles:
        twice = f"{abbreviate(ref.key)} and {abbreviate(roles[parsed.role].key)}"
        raise WeightsError(path, f"{twice} change the same layer; remove one of the two")
    roles[parsed.role] = ref


@dataclass(frozen=True, slots=True)
class Patch:
    """A change to one weight of a network.

    Attributes:
        weight: the weight's name in the network.
        shape: the weight's.
        layer: where the file has it.
        tensors: by role.
    """

    folder: str
    weight: str
    shape: tuple[int, ...]
    layer: LayerName
    kind: str
    tensors: Mapping[str, TensorRef]


@dataclass(frozen=True, slots=True)
class Network:
    """What patches are matched with: a network's folder, its layers by the names in files, its weights' shapes."""

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
