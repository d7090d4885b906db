"""The LoRAs that are applied to a model: one set at a time, swapped in place.

A set is computed as a whole before any weight changes, on a thread of its own, so the next job's can be prepared
while another job runs. Every LoRA's change is computed from the unchanged weight and added in float32; their order
does not matter.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Lock
from typing import TypeAlias

import torch
from torch import Tensor

from pipelines.adapters.lora_file import read_lora
from pipelines.adapters.lora_keys import name_layers
from pipelines.adapters.lora_patches import Network, match_lora
from pipelines.adapters.lora_tensors import LoadedPatch, load_patches
from pipelines.adapters.pristine import PristineWeights, WeightKey, is_finite, read_state
from pipelines.errors import PipelineError, UnusableFile, WeightsError
from pipelines.job import Lora
from pipelines.types import Family
from pipelines.weights.checkpoint import fingerprint
from pipelines.weights.model_plan import ModelPart, PlannedPart

LoraSet: TypeAlias = tuple[Lora, ...]
Patches: TypeAlias = Mapping[WeightKey, Sequence[tuple[LoadedPatch, float]]]
"""The patches of a set and their strengths, by the weight that they change."""


@dataclass(frozen=True, slots=True)
class PreparedSet:
    """A set of LoRAs, ready to apply.

    Attributes:
        weights: the changed weights that were kept; others are computed again when they are applied.
        text_key: what the text encoders' outputs depend on.
    """

    loras: LoraSet
    patches: Patches
    weights: Mapping[WeightKey, Tensor]
    text_key: tuple[object, ...]


NOTHING = PreparedSet((), {}, {}, ())


class LoraResidency:
    """Applies LoRAs to the networks of a model.

    Args:
        parts: the networks and their files; without any, LoRAs are refused.
        budget: bytes of CPU memory for unchanged copies of weights and for a prepared set.

    Attributes:
        swaps: how often another set than the one before was applied, none at all included.
    """

    def __init__(self, parts: Sequence[PlannedPart], family: Family, budget: int) -> None:
        self._parts, self._family, self._budget = tuple(parts), family, budget
        self._pristine = PristineWeights(parts, budget)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lora")
        self._lock = Lock()
        self._next: tuple[LoraSet, Future[PreparedSet]] | None = None
        self._claimed: LoraSet = ()  # that `activate` waits for
        self._active: LoraSet | None = ()  # None after a swap that failed
        self.text_key: tuple[object, ...] = ()
        self.swaps = 0

    def prepare(self, loras: LoraSet) -> None:
        """Begin to read and compute a set that will be activated next; returns at once and never fails.

        Another set that waits for that is dropped.
        """
        loras = _order(loras)
        with self._lock:
            if not loras or loras in (self._active, self._claimed, self._next and self._next[0]):
                return
            self._drop_next()
            self._next = loras, self._thread.submit(self._prepare, loras)

    def is_active(self, loras: LoraSet) -> bool:
        """Return whether a set, and nothing else, is applied."""
        return _order(loras) == self._active

    def activate(self, loras: LoraSet) -> None:
        """Apply a set, and nothing else, to the model's weights. On the thread that owns the device.

        Raises:
            UnusableFile: a file does not fit the model, is damaged, or is too strong; nothing is applied then.
        """
        loras = _order(loras)
        if loras == self._active:
            return
        try:
            self._swap(self._claim(loras).result() if loras else NOTHING)
        finally:
            self._claimed = ()

    def _claim(self, loras: LoraSet) -> Future[PreparedSet]:
        """Return the future of a set, which `prepare` cannot drop any more."""
        with self._lock:
            self._claimed = loras
            claimed = self._next
            if claimed is None or claimed[0] != loras:
                self._drop_next()
                claimed = loras, self._thread.submit(self._prepare, loras)
            self._next = None
            return claimed[1]

    def _drop_next(self) -> None:
        if self._next is not None:
            self._next[1].cancel()  # without effect if it is computed already

    @torch.inference_mode()
    def _prepare(self, loras: LoraSet) -> PreparedSet:
        patches: dict[WeightKey, list[tuple[LoadedPatch, float]]] = {}
        text_key: list[object] = []
        for lora in loras:
            with _translate_errors(lora):
                loaded = self._load(lora)
                for patch in loaded:
                    strength = lora.unet if patch.patch.folder == "unet" else lora.text
                    if strength:
                        for key in self._find_weights(patch):
                            patches.setdefault(key, []).append((patch, strength))
            if lora.text and any(patch.patch.folder != "unet" for patch in loaded):
                text_key.append((lora.fingerprint, lora.text))
        weights = self._compute_weights(loras, patches)
        return PreparedSet(loras, patches, weights, tuple(text_key))

    def _load(self, lora: Lora) -> tuple[LoadedPatch, ...]:
        if not self._parts:
            raise PipelineError("LoRAs can be applied only to a model that was loaded from files")
        state = read_state(lora.path)
        if fingerprint(lora.path) != lora.fingerprint:
            raise WeightsError(lora.path, "it has changed since the request was read; send the request again")
        file = read_lora(lora.path)
        file.check_family(self._family)
        networks = describe_networks(part.part for part in self._parts)
        patches = load_patches(file, match_lora(file, networks))
        if read_state(lora.path) != state:
            raise WeightsError(lora.path, "it changed while it was read; send the request again")
        return patches

    def _find_weights(self, patch: LoadedPatch) -> list[WeightKey]:
        """Return the weights that a patch changes: an inpainting UNet has those of the UNet too."""
        name = patch.patch.weight
        indices = (index for index, part in enumerate(self._parts) if part.part.folder == patch.patch.folder)
        return [WeightKey(index, name) for index in indices]

    def _compute_weights(self, loras: LoraSet, patches: Patches) -> dict[WeightKey, Tensor]:
        """Compute every changed weight, so that all are known to be finite, and return those that may be kept."""
        kept: dict[WeightKey, Tensor] = {}
        size = 0
        for key in patches:
            value = self._compute(key, patches[key])
            if not is_finite(value):
                names = ", ".join(repr(lora.name) for lora in loras)
                dtype = str(value.dtype).removeprefix("torch.")
                reason = f"their strengths make {key.name} too large for {dtype}; lower them"
                raise UnusableFile("LoRA", names, reason)
            size += value.nbytes
            if self._pristine.copied_bytes + size <= self._budget:
                kept[key] = value
        return kept

    def _compute(self, key: WeightKey, patches: Sequence[tuple[LoadedPatch, float]]) -> Tensor:
        pristine = self._pristine.get(key)
        base = pristine.float()
        changes = [patch.compute(base, strength) for patch, strength in patches]
        return sum(changes, base).to(pristine.dtype)

    @torch.inference_mode()
    def _swap(self, prepared: PreparedSet) -> None:
        """Restore what the set does not change, and write what it does; if that fails, restore everything."""
        self._active = None
        try:
            for key in self._pristine.changed - prepared.patches.keys():
                self._pristine.restore(key)
            for key, patches in prepared.patches.items():
                value = prepared.weights.get(key)
                # on the same thread, so that the number of threads and with it the rounding are the same
                value = self._thread.submit(self._compute, key, patches).result() if value is None else value
                self._pristine.write(key, value)
        except BaseException:
            with suppress(Exception):
                for key in tuple(self._pristine.changed):
                    self._pristine.restore(key)
                self._active, self.text_key = (), ()
            raise
        self._active, self.text_key = prepared.loras, prepared.text_key
        self.swaps += 1


def _order(loras: LoraSet) -> LoraSet:
    """Return the same set for every order of its LoRAs, without those that change nothing."""
    effective = (lora for lora in loras if lora.unet or lora.text)
    return tuple(sorted(effective, key=lambda lora: (lora.fingerprint, lora.name)))


@contextmanager
def _translate_errors(lora: Lora) -> Generator[None]:
    """Turn errors about a file into errors about the LoRA that a job names."""
    try:
        yield
    except WeightsError as error:
        raise UnusableFile("LoRA", repr(lora.name), error.reason) from error


def describe_networks(parts: Iterable[ModelPart]) -> tuple[Network, ...]:
    """Return what the patches of a file are matched with: the model's first network of each kind."""
    networks: dict[str, Network] = {}
    for part in parts:
        if part.folder not in networks and part.folder != "vae":
            state = part.module.state_dict()
            shapes = {name: tuple(state[name].shape) for name in part.keys}  # without those of image adapters
            networks[part.folder] = Network(part.folder, name_layers(part.folder, shapes, part.keys), shapes)
    return tuple(networks.values())
