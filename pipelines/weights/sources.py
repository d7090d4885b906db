"""Which stored tensor fills each weight of a network: found, and checked as a whole, from headers alone.

Loading and `naiad check` both start here, so one refuses what the other does.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipelines.errors import WeightsError, abbreviate
from pipelines.weights.checkpoint import Checkpoint
from pipelines.weights.key_map import MappedKey
from pipelines.weights.naming import IGNORED_KEY, SPARE_PROJECTION, Naming, find_component
from pipelines.weights.quantization import check_dtype, check_scale, find_scale, is_scaled, refuse_quantized

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """The stored tensor of a weight, and the key of the scale that it must be multiplied by, if it has one."""

    mapped: MappedKey
    scale: str | None = None


@dataclass(frozen=True, slots=True)
class Component:
    """A network to fill: its folder in a diffusers layout, its weights' shapes, and the names they may have.

    The namings are gone through once; there may be a hundred of hundreds of names, of which files need few.
    """

    folder: str
    shapes: Mapping[str, Shape]
    namings: Iterable[Naming]


FoundWeights = Mapping[str, StoredWeight]
"""The stored tensor of each weight of a component."""


def find_weights(source: Checkpoint, components: Sequence[Component]) -> dict[str, FoundWeights]:
    """Return the stored weights of the components that a source is read for, by their folders.

    Raise WeightsError if one is missing, has another shape or cannot be read, or if a tensor of these components is
    left over: then the source is of another architecture.
    """
    folders = {component.folder for component in components}
    keys = [key for key in source.tensors if find_component(key) in {None, *folders}]
    refuse_quantized(source.path, keys)
    found = {component.folder: _find_component_weights(source, component, keys) for component in components}
    used = {key for weights in found.values() for weight in weights.values() for key in _list_keys(weight)}
    unused = (key for key in keys if key not in used)
    extra = [key for key in unused if not IGNORED_KEY.search(key) and not SPARE_PROJECTION.search(key)]
    if extra:
        reason = f"{count_keys('unexpected', extra)}; it is of another architecture"
        raise WeightsError(source.path, reason)
    return found


def _choose_naming(namings: Iterable[Naming], source: Checkpoint) -> Naming:
    """The naming under which a source has the most weights: the first of those, or the first that has all."""
    counts: list[tuple[int, Naming]] = []
    for naming in namings:
        counts.append((naming.count(source.tensors), naming))
        if counts[-1][0] == len(naming.keys):
            break
    return max(counts, key=lambda each: each[0])[1]


def _list_keys(weight: StoredWeight) -> tuple[str, ...]:
    return (weight.mapped.key,) if weight.scale is None else (weight.mapped.key, weight.scale)


def _find_component_weights(source: Checkpoint, component: Component, keys: Iterable[str]) -> FoundWeights:
    naming = _choose_naming(component.namings, source)
    found = {name: naming.find(name, source.tensors) for name in component.shapes}
    absent = {naming.keys[name][0].key for name, mapped in found.items() if mapped is None}
    present = {name: mapped for name, mapped in found.items() if mapped is not None}
    if not present:
        setting = "vae" if component.folder == "vae" else "text_encoders"
        reason = f"it contains no {component.folder}; name a file that does under `{setting}` in the catalog"
        raise WeightsError(source.path, reason)
    if absent:
        raise WeightsError(source.path, count_keys("missing", absent))
    own_keys = [key for key in keys if find_component(key) in {None, component.folder}]
    needs_scales = is_scaled(own_keys, source.metadata)
    return {
        name: check_weight(source, mapped, component.shapes[name], needs_scales)
        for name, mapped in present.items()
    }


def check_weight(source: Checkpoint, mapped: MappedKey, expected: Shape, needs_scale: bool) -> StoredWeight:
    """Return a weight with its scale; raise WeightsError if its dtype, shape or scale is not as it must be."""
    ref = source.tensors[mapped.key]
    check_dtype(source.path, mapped.key, ref)
    shape = mapped.model_shape(ref.shape)
    if shape != expected:
        reason = f"{abbreviate(mapped.key)} has the shape {abbreviate(str(shape))}, not {expected}"
        raise WeightsError(source.path, f"{reason}; it is of another architecture")
    scale = find_scale(source.tensors, mapped.key)
    if scale is not None or needs_scale:
        check_scale(source.path, source.tensors, mapped.key, scale)
    return StoredWeight(mapped, scale)


def count_keys(what: str, keys: Iterable[str]) -> str:
    """Return the number of keys, what is wrong with them, and the first three."""
    ordered = sorted(keys)
    first = ", ".join(map(abbreviate, ordered[:3]))
    return f"{len(ordered)} {what} ({first}{', ...' if len(ordered) > 3 else ''})"
