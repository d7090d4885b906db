"""The original values of the weights that LoRAs change."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

from pipelines.errors import WeightsError
from pipelines.unet.quantized_linear import QuantizedLinear
from pipelines.weights.model_plan import PlannedPart
from pipelines.weights.reader import read_tensors


class WeightKey(NamedTuple):
    """A weight of a model: the index of its network among the model's parts, and its name there."""

    part: int
    name: str


@dataclass(frozen=True, slots=True)
class FileState:
    """Size and modification time of a file, which show whether it was replaced."""

    size: int
    modified: int


class PristineWeights:
    """A model's weights, of which some are changed in place.

    Their original values are copied to the CPU, up to `budget` bytes; others are read from the files again. Changes are
    never subtracted, so a restored weight is bit for bit what was loaded. A quantized weight is quantized again.

    `get` may be called on any thread; `write` and `restore` on the one that owns the device.
    """

    def __init__(self, parts: Sequence[PlannedPart], budget: int) -> None:
        self._parts, self._budget = tuple(parts), budget
        self._files = {file: read_state(file) for part in parts for file in part.files}
        self._copies: dict[WeightKey, Tensor] = {}
        self._lock = Lock()
        self.changed: set[WeightKey] = set()

    @property
    def copied_bytes(self) -> int:
        """Bytes of the copies."""
        return sum(copy.nbytes for copy in self._copies.values())

    def get(self, key: WeightKey) -> Tensor:
        """Return the original value on the CPU, in the network's dtype.

        Raises:
            WeightsError: it was not copied, and its file has changed since it was loaded.
        """
        with self._lock:
            copy = self._copies.get(key)
            if copy is not None:
                return copy
            if key in self.changed:
                return self._reread(key)
            quantized = self._find_quantized(key)
            # of a quantized weight only the file has the original value
            value = self._find(key).to("cpu", copy=True) if quantized is None else self._reread(key)
            if self.copied_bytes + value.nbytes <= self._budget:
                self._copies[key] = value
            return value

    def write(self, key: WeightKey, value: Tensor) -> None:
        """Change a weight in place."""
        with self._lock:
            self.changed.add(key)  # before the copy: if that fails halfway, the weight is not pristine
            self._store(key, value)

    def restore(self, key: WeightKey) -> None:
        """Restore a weight in place."""
        value = self.get(key)
        with self._lock:
            self._store(key, value)
            self.changed.discard(key)

    def _store(self, key: WeightKey, value: Tensor) -> None:
        quantized = self._find_quantized(key)
        if quantized is None:
            self._find(key).copy_(value)
        else:
            quantized.store(value)

    def _find(self, key: WeightKey) -> Tensor:
        """Return the weight itself. It is looked up each time, because moving a network replaces its tensors."""
        return self._parts[key.part].part.module.get_parameter(key.name).detach()

    def _find_quantized(self, key: WeightKey) -> QuantizedLinear | None:
        """Return the layer of a weight if it is a quantized one."""
        layer, _, parameter = key.name.rpartition(".")
        found = self._parts[key.part].part.module.get_submodule(layer)
        return found if isinstance(found, QuantizedLinear) and parameter == "weight" else None

    def _reread(self, key: WeightKey) -> Tensor:
        quantized = self._find_quantized(key)
        dtype = self._find(key).dtype if quantized is None else quantized.full_dtype
        planned = self._parts[key.part]
        for file in planned.files:
            if read_state(file) != self._files[file]:
                raise WeightsError(file, "it has changed since it was loaded; restart the server")
        tensors = read_tensors(planned.source, {key.name: planned.weights[key.name]}, dtype)
        return tensors[key.name].to(dtype)


def read_state(file: Path) -> FileState | None:
    """Return by what a change of a file is recognized; None if it cannot be read."""
    try:
        status = file.stat()
    except OSError:
        return None
    return FileState(status.st_size, status.st_mtime_ns)


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity; its extremes show that ten times as fast as all its values."""
    return bool(torch.stack(tensor.aminmax()).isfinite().all())
