"""An inpainting UNet for a fine-tune, without training: what the fine-tune learned is added to one that can inpaint.

result = inpaint + (fine_tune - base), tensor by tensor; of the first convolution's 9 input channels the 4 that are
latents take part and the other 5 stay the inpainting model's. This is "add difference" with multiplier 1 in
https://github.com/AUTOMATIC1111/stable-diffusion-webui/blob/master/modules/extras.py. Everything else is the
fine-tune's. One tensor at a time is in memory.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor

from pipelines.errors import WeightsError
from pipelines.weights.architecture import METADATA_KEY, Architecture, sdxl
from pipelines.weights.checkpoint import SIZES, Checkpoint, checkpoint_files, open_checkpoint
from pipelines.weights.detect import FIRST, Detection, detect, detect_inpainting, embedded_architecture
from pipelines.weights.single_file import StoredTensor, companion_tensors, read_bytes, unet_tensors

CONV_IN = FIRST[0]
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
STALE = re.compile(r"modelspec\.(hash_|date$)|sshs_")
PREDICTIONS = {"v": "v", "eps": "epsilon"}  # what ModelSpec has words for


@dataclass(frozen=True, slots=True)
class MergeReport:
    """A file that was made: what it is by its own header, and how many tensors were summed and how many copied."""

    output: Path
    identity: Detection
    summed: int
    copied: int


@dataclass(frozen=True, slots=True)
class SourceModel:
    """One of the three models that a merge reads."""

    checkpoint: Checkpoint
    identity: Detection
    architecture: Architecture
    unet: Mapping[str, StoredTensor]

    @property
    def path(self) -> Path:
        return self.checkpoint.path


class PlannedTensor(NamedTuple):
    """A tensor still to be written: `content` makes its bytes, (size,) of uint8."""

    dtype: str
    shape: tuple[int, ...]
    size: int
    content: Callable[[], Tensor]


def merge_inpainting(inpaint: Path, fine_tune: Path, base: Path, output: Path) -> MergeReport:
    """Make a 9-channel checkpoint in the single-file layout; the three models may be of any layout.

    Args:
        inpaint: an SDXL model with 9 input channels.
        fine_tune: one with 4; its VAE, text encoders, dtypes, markers and metadata are the result's.
        base: the 4-channel model that both of them come from.

    Raises:
        WeightsError: a model is not what it should be, the three do not fit together, a sum is not finite, or
            the output exists already or cannot be written. Nothing is left behind then.
    """
    parents = (_parent(inpaint, 9), _parent(fine_tune, 4), _parent(base, 4))
    _refuse_output(output, parents)
    _refuse_unlike(*parents)
    model = parents[1]
    copied = _markers(model.identity) | companion_tensors(model.checkpoint, model.architecture)
    planned = _sums(*parents) | {key: _copy(stored) for key, stored in copied.items()}
    try:
        with TemporaryDirectory(dir=output.parent, prefix=".merging-") as folder:
            fresh = Path(folder) / output.name
            _write(fresh, planned, _metadata(*parents))
            identity = detect_inpainting(fresh, model.identity)
            output.touch(exist_ok=False)  # refuses a file that has appeared meanwhile
            fresh.replace(output)
    except OSError as error:
        raise WeightsError(output, f"cannot be written: {error.strerror}") from error
    return MergeReport(output, identity, len(model.unet), len(copied))


def _parent(path: Path, channels: int) -> SourceModel:
    checkpoint, identity = open_checkpoint(path), detect(path)
    if identity.family != "sdxl":
        raise WeightsError(path, "Stable Diffusion 1's UNet; only SDXL's can be merged")
    if identity.channels != channels:
        role = "the inpainting model" if channels == 9 else "the fine-tune and the base"
        raise WeightsError(
            path, f"its UNet has {identity.channels} input channels; {role} must have {channels}"
        )
    architecture = embedded_architecture(checkpoint) or sdxl(channels)
    return SourceModel(checkpoint, identity, architecture, unet_tensors(checkpoint, architecture))


def _refuse_output(output: Path, parents: Iterable[SourceModel]) -> None:
    read_from = {
        file.resolve() for parent in parents for file in (parent.path, *checkpoint_files(parent.checkpoint))
    }
    if output.resolve() in read_from:
        raise WeightsError(output, "it is one of the models to merge; name another file for the result")
    if output.exists() or output.is_symlink():
        raise WeightsError(output, "it exists already, and is not overwritten")
    if output.suffix.lower() != ".safetensors":
        raise WeightsError(output, "the result is a safetensors file; let its name end in .safetensors")


def _refuse_unlike(inpaint: SourceModel, fine_tune: SourceModel, base: SourceModel) -> None:
    """Refuse UNets that cannot be summed; the first reason found is told."""
    parents = (inpaint, fine_tune, base)
    keys = sorted({key for parent in parents for key in parent.unet})
    for parent in parents:
        absent = [key for key in keys if key not in parent.unet]
        if absent:
            shown = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
            raise WeightsError(parent.path, f"{len(absent)} missing that the others have ({shown})")
    for key in keys:
        for parent in parents:
            if parent.unet[key].dtype not in FLOATS:
                raise WeightsError(parent.path, _not_float(key, parent.unet[key].dtype))
        shape = fine_tune.unet[key].shape
        _refuse_shape(key, base, shape, fine_tune)
        _refuse_shape(key, inpaint, (shape[0], 9, *shape[2:]) if key == CONV_IN else shape, fine_tune)


def _not_float(key: str, dtype: str) -> str:
    narrow = " (8-bit floats)" if dtype.startswith("F8") else ""
    return f"{key} is {dtype}{narrow}; {', '.join(FLOATS)} can be merged"


def _refuse_shape(key: str, parent: SourceModel, wanted: tuple[int, ...], fine_tune: SourceModel) -> None:
    shape = parent.unet[key].shape
    if shape != wanted:
        reason = f"{key} has the shape {shape}; to go with {fine_tune.path.name} it must be {wanted}"
        raise WeightsError(parent.path, reason)


def _sums(inpaint: SourceModel, fine_tune: SourceModel, base: SourceModel) -> dict[str, PlannedTensor]:
    return {
        key: PlannedTensor(
            stored.dtype,
            inpaint.unet[key].shape,
            prod(inpaint.unet[key].shape) * SIZES[stored.dtype],
            partial(_sum, key, inpaint.unet[key], stored, base.unet[key]),
        )
        for key, stored in fine_tune.unet.items()
    }


def _sum(key: str, inpaint: StoredTensor, fine_tune: StoredTensor, base: StoredTensor) -> Tensor:
    """The bytes of one summed tensor, in the fine-tune's dtype."""
    unlearned = _numbers(base).sub_(_numbers(fine_tune))
    total = _numbers(inpaint)
    shared = total[:, : unlearned.shape[1]] if key == CONV_IN else total
    # less what was unlearned, not plus what was learned: adding a zero would turn a weight of -0.0 into 0.0
    shared.sub_(unlearned)
    result = total.to(FLOATS[fine_tune.dtype])
    if not _finite(result):
        raise _not_finite(key, inpaint, fine_tune, base)
    return result.reshape(-1).view(torch.uint8)


def _numbers(stored: StoredTensor) -> Tensor:
    """A tensor in float32, in memory that nothing else uses."""
    return read_bytes(stored).view(FLOATS[stored.dtype]).reshape(stored.shape).float()


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _not_finite(key: str, inpaint: StoredTensor, fine_tune: StoredTensor, base: StoredTensor) -> WeightsError:
    for stored in (inpaint, fine_tune, base):
        if not _finite(_numbers(stored)):
            return WeightsError(stored.stretches[0].file, f"{key} holds NaN or infinity")
    return WeightsError(
        fine_tune.stretches[0].file, f"{key}: the sum is too large for its dtype, {fine_tune.dtype}"
    )


def _copy(stored: StoredTensor) -> PlannedTensor:
    return PlannedTensor(stored.dtype, stored.shape, stored.size, partial(read_bytes, stored))


def _markers(model: Detection) -> dict[str, StoredTensor]:
    """What says a velocity model is one where neither a scheduler's config nor its old name goes along."""
    names = {("v", False): ("v_pred",), ("v", True): ("v_pred", "ztsnr")}.get(
        (model.prediction, model.zsnr), ()
    )
    return {name: StoredTensor("F32", (0,), ()) for name in names}


def _metadata(inpaint: SourceModel, fine_tune: SourceModel, base: SourceModel) -> dict[str, str]:
    """The fine-tune's, told of the merge in the words of https://github.com/Stability-AI/ModelSpec.

    The architecture is spelled like SwarmUI's `stable-diffusion-v1/inpaint`: the standard lists none for SDXL.
    """
    told = {key: text for key, text in fine_tune.checkpoint.metadata.items() if not STALE.match(key)}
    told["modelspec.architecture"] = "stable-diffusion-xl-v1-base/inpaint"
    told["modelspec.title"] = f"{_title(fine_tune)} inpainting"
    told["modelspec.merged_from"] = ", ".join(_title(parent) for parent in (inpaint, fine_tune, base))
    if fine_tune.identity.prediction in PREDICTIONS:
        told["modelspec.prediction_type"] = PREDICTIONS[fine_tune.identity.prediction]
    if METADATA_KEY in told:
        network = dict(fine_tune.architecture.unet) | {"in_channels": 9}
        told[METADATA_KEY] = replace(fine_tune.architecture, unet=network).to_json()
    return dict(sorted(told.items()))


def _title(parent: SourceModel) -> str:
    name = parent.path.name or parent.path.resolve().name
    return parent.checkpoint.metadata.get("modelspec.title") or name.removesuffix(".safetensors")


def _write(path: Path, planned: Mapping[str, PlannedTensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, its header first; wide numbers come first, so that all lie aligned."""
    order = sorted(planned, key=lambda key: (-_width(planned[key]), key))
    header: dict[str, object] = {"__metadata__": metadata}
    start = 0
    for key in order:
        dtype, shape, size, _ = planned[key]
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": (start, start + size)}
        start += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            file.write(planned[key].content().numpy().data)


def _width(planned: PlannedTensor) -> int:
    """Bytes of one number."""
    return SIZES.get(planned.dtype, planned.size // max(1, prod(planned.shape)))
