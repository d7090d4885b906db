"""LoRA files, read and recognized from their headers. Needs no torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple, cast

from pipelines.adapters.lora_keys import LoraKey, parse_key
from pipelines.adapters.lora_kinds import KINDS, LoraKind, Shapes, rank_of
from pipelines.errors import WeightsError, abbreviate
from pipelines.text.inversions import bundled_word
from pipelines.weights.families import FAMILIES
from pipelines.weights.header import TensorRef, read_header

OTHER_MODELS = {
    "double_blocks_": "Flux",
    "single_transformer_blocks_": "Flux",
    "joint_blocks_": "Stable Diffusion 3",
    "transformer_blocks_0_attn_add_q_proj": "Stable Diffusion 3",
}
"""Parts of layers' paths that occur only in families that are not supported, and the names of these."""
NO_SHAPE: tuple[int, ...] = ()
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
        words: the names of the textual inversions in it.
    """

    path: Path
    layers: Mapping[LayerName, LayerTensors]
    metadata: Mapping[str, str]
    unknown: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

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
        """The networks that it changes, as their folders in a diffusers layout."""
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
        """The family that it fits by the width of text tokens, or by a second text encoder; None if unknown."""
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
        WeightsError: it cannot be read, or is not a LoRA.
    """
    header = read_header(path)
    layers: dict[LayerName, dict[str, TensorRef]] = {}
    unknown: list[str] = []
    words = set[str]()
    for key, ref in header.tensors.items():
        parsed, word = parse_key(key), bundled_word(key)
        if word:
            words.add(word)
        elif parsed is None:
            unknown.append(key)
        else:
            _add(layers, parsed, ref, path)
    read = {name: LayerTensors(tensors) for name, tensors in layers.items()}
    known = {name: layer for name, layer in read.items() if layer.kinds}
    unknown += [ref.key for name in read.keys() - known.keys() for ref in read[name].tensors.values()]
    if not known:
        raise WeightsError(path, "no LoRA: it has no tensors of any kind that changes a model's weights")
    return LoraFile(path, known, header.metadata, tuple(unknown), tuple(sorted(words)))


def _add(layers: dict[LayerName, dict[str, TensorRef]], parsed: LoraKey, ref: TensorRef, path: Path) -> None:
    roles = layers.setdefault(LayerName(parsed.folder, parsed.layer), {})
    if parsed.role in roles:
        twice = f"{abbreviate(ref.key)} and {abbreviate(roles[parsed.role].key)}"
        raise WeightsError(path, f"{twice} change the same layer; remove one of the two")
    roles[parsed.role] = ref
