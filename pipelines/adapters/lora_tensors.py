"""The tensors of a LoRA file, read into memory and checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import torch
from torch import Tensor

from pipelines.adapters.lora_changes import compute_change
from pipelines.adapters.lora_file import LoraFile
from pipelines.adapters.lora_kinds import rank_of
from pipelines.adapters.lora_patches import Patch
from pipelines.errors import WeightsError
from pipelines.weights.reader import read_float


@dataclass(frozen=True, slots=True)
class LoadedPatch:
    """A change to one weight, with its tensors in float32."""

    patch: Patch
    tensors: Mapping[str, Tensor]
    scale: float

    def compute(self, base: Tensor, strength: float) -> Tensor:
        """Return what is added to a weight, in float32.

        If the weight has more input channels than the patch was made for, as an inpainting UNet's first layer has,
        the change of the others is 0.
        """
        channels = self.patch.shape[1] if len(self.patch.shape) > 1 else 0
        if base.ndim < 2 or base.shape[1] == channels:
            return compute_change(self.patch.kind, self.tensors, self.scale, base, strength)
        change = torch.zeros_like(base)
        known = base[:, :channels].contiguous()
        change[:, :channels] = compute_change(self.patch.kind, self.tensors, self.scale, known, strength)
        return change


def load_patches(file: LoraFile, patches: Sequence[Patch]) -> tuple[LoadedPatch, ...]:
    """Read the tensors of patches; raise WeightsError if one is not finite, or the file has changed.

    Files are read, not mapped: one that a trainer overwrites meanwhile must not end the process.
    """
    try:
        with file.path.open("rb") as stream:
            return tuple(_load_patch(file, patch, stream) for patch in patches)
    except OSError as error:
        raise WeightsError(file.path, f"cannot be read: {error.strerror}") from error


def _load_patch(file: LoraFile, patch: Patch, stream: BinaryIO) -> LoadedPatch:
    tensors = {role: read_float(ref, stream) for role, ref in patch.tensors.items()}
    rank = rank_of(patch.kind, {role: ref.shape for role, ref in patch.tensors.items()})
    if rank is None:
        return LoadedPatch(patch, tensors, 1.0)
    # LyCORIS takes an alpha of 0 as the rank
    alpha = float(tensors["alpha"]) if "alpha" in tensors else file.alpha_of(patch.layer, rank)
    return LoadedPatch(patch, tensors, (alpha or rank) / rank)
