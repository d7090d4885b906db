"""Make an inpainting UNet for a fine-tune without training: add what the fine-tune learned to an inpainting model.

result = inpaint + (fine_tune - base), tensor by tensor. Of the first convolution's 9 input channels only the 4 of the
latents are summed; the other 5 stay the inpainting model's. This is "add difference" with multiplier 1 in
https://github.com/AUTOMATIC1111/stable-diffusion-webui/blob/master/modules/extras.py. Everything outside the UNet is
copied from the fine-tune. One tensor at a time is in memory.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from shutil import disk_usage
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor

from pipelines.errors import WeightsError
from pipelines.weights.architecture import METADATA_KEY, Architecture
from pipelines.weights.checkpoint import Checkpoint, checkpoint_files, open_checkpoint
from pipelines.weights.detect import Detection, detect, detect_inpainting
from pipelines.weights.embedded import choose_architecture
from pipelines.weights.families import CONV_IN_KEYS, FAMILIES
from pipelines.weights.header import DTYPE_BITS
from pipelines.weights.single_file import StoredTensor, find_companion_tensors, find_unet_tensors, read_bytes

CONV_IN = CONV_IN_KEYS[0]
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
STALE_METADATA = re.compile(r"modelspec\.(hash_|date$)|sshs_")
PREDICTIONS = {"v": "v", "eps": "epsilon"}  # those that ModelSpec has names for


@dataclass(frozen=True, slots=True)
class MergeReport:
    """The file that was written, what it is by its own header, and how many tensors were summed and copied."""

    output: Path
    detection: Detection
    summed: int
    copied: int


@dataclass(frozen=True, slots=True)
class SourceModel:
    """One of the three models that a merge reads."""

    checkpoint: Checkpoint
    detection: Detection
    architecture: Architecture
    unet: Mapping[str, StoredTensor]

    @property
    def path(self) -> Path:
        return self.checkpoint.path


class PlannedTensor(NamedTuple):
    """A tensor to write; `read` returns its bytes, (size,) of uint8."""

    dtype: str
    shape: tuple[int, ...]
    size: int
    read: Callable[[], Tensor]


def merge_inpainting(
    inpaint: Path, fine_tune: Path, base: Path, output: Path, *, overwrite: bool = False
) -> MergeReport:
    """Write a 9-channel checkpoint in the single-file layout; each of the three models may have any layout.

    Args:
        inpaint: an SDXL model with 9 input channels.
        fine_tune: a model with 4; the result has its VAE, text encoders, dtypes, markers and metadata.
        base: the 4-channel model that both were made from.
        overwrite: whether an output that exists is replaced.

    Raises:
        WeightsError: a model is not of the required kind, the three do not fit together, a sum is not finite, or
            the output exists already, cannot be written or has no room. No file is left behind then.
    """
    sources = (_open_source(inpaint, 9), _open_source(fine_tune, 4), _open_source(base, 4))
    _check_output(output, sources, overwrite)
    _check_compatibility(*sources)
    model = sources[1]
    copied = _build_markers(model.detection) | find_companion_tensors(model.checkpoint, model.architecture)
    planned = _plan_sums(*sources)
    for key, stored in copied.items():
        planned[key] = PlannedTensor(stored.dtype, stored.shape, stored.size, partial(read_bytes, stored))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _check_room(output, sum(tensor.size for tensor in planned.values()))
        with TemporaryDirectory(dir=output.parent, prefix=".merging-") as folder:
            temporary = Path(folder) / output.name
            _write(temporary, planned, _build_metadata(*sources))
            detection = detect_inpainting(temporary, model.detection)
            output.touch(exist_ok=overwrite)  # refuses a file that has appeared meanwhile
            temporary.replace(output)
    except OSError as error:
        raise WeightsError(output, f"cannot be written: {error.strerror}") from error
    return MergeReport(output, detection, len(model.unet), len(copied))


def _open_source(path: Path, channels: int) -> SourceModel:
    checkpoint, detection = open_checkpoint(path), detect(path)
    family = FAMILIES[detection.family]
    if family.inpainting_architecture is None:
        titles = ", ".join(other.title for other in FAMILIES.values() if other.inpainting_architecture)
        raise WeightsError(path, f"a UNet of {family.title}; only those of {titles} can be merged")
    if detection.channels != channels:
        role = "the inpainting model" if channels == 9 else "the fine-tune and the base"
        reason = f"its UNet has {detection.channels} input channels; {role} must have {channels}"
        raise WeightsError(path, reason)
    architecture = choose_architecture(checkpoint, detection.family, channels)
    return SourceModel(checkpoint, detection, architecture, find_unet_tensors(checkpoint, architecture))


def _check_output(output: Path, sources: Iterable[SourceModel], overwrite: bool) -> None:
    inputs = [file for source in sources for file in (source.path, *checkpoint_files(source.checkpoint))]
    if output.resolve() in {file.resolve() for file in inputs}:
        raise WeightsError(output, "it is one of the models to merge; name another file for the result")
    if output.is_dir() or (output.exists() and not output.is_file()):
        raise WeightsError(output, "it is not a file; name another one for the result")
    if (output.exists() or output.is_symlink()) and not overwrite:
        raise WeightsError(output, "it exists already; name another file, or add --force")
    if output.suffix.lower() != ".safetensors":
        raise WeightsError(output, "the result is a safetensors file; its name must end in .safetensors")


def _check_room(output: Path, size: int) -> None:
    free = disk_usage(output.parent).free
    if free < size:
        reason = f"the result has {size / 1e6:.0f} MB, and only {free / 1e6:.0f} MB are free there"
        raise WeightsError(output, reason)


def _check_compatibility(inpaint: SourceModel, fine_tune: SourceModel, base: SourceModel) -> None:
    """Raise for UNets that cannot be summed, with the first reason."""
    sources = (inpaint, fine_tune, base)
    keys = sorted({key for source in sources for key in source.unet})
    for source in sources:
        absent = [key for key in keys if key not in source.unet]
        if absent:
            first = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
            raise WeightsError(source.path, f"{len(absent)} missing that the others have ({first})")
    for key in keys:
        for source in sources:
            dtype = source.unet[key].dtype
            if dtype not in FLOATS:
                name = f"{dtype} (8-bit floats)" if dtype.startswith("F8") else dtype
                raise WeightsError(source.path, f"{key} is {name}; {', '.join(FLOATS)} can be merged")
        shape = fine_tune.unet[key].shape
        _check_shape(key, base, shape, fine_tune)
        _check_shape(key, inpaint, (shape[0], 9, *shape[2:]) if key == CONV_IN else shape, fine_tune)


def _check_shape(key: str, source: SourceModel, expected: tuple[int, ...], fine_tune: SourceModel) -> None:
    shape = source.unet[key].shape
    if shape != expected:
        reason = f"{key} has the shape {shape}; to match {fine_tune.path.name} it must be {expected}"
        raise WeightsError(source.path, reason)


def _plan_sums(inpaint: SourceModel, fine_tune: SourceModel, base: SourceModel) -> dict[str, PlannedTensor]:
    return {
        key: PlannedTensor(
            stored.dtype,
            inpaint.unet[key].shape,
            prod(inpaint.unet[key].shape) * DTYPE_BITS[stored.dtype] // 8,
            partial(_sum, key, inpaint.unet[key], stored, base.unet[key]),
        )
        for key, stored in fine_tune.unet.items()
    }


def _sum(key: str, inpaint: StoredTensor, fine_tune: StoredTensor, base: StoredTensor) -> Tensor:
    """The bytes of one summed tensor, in the fine-tune's dtype."""
    difference = _read_float32(base).sub_(_read_float32(fine_tune))
    total = _read_float32(inpaint)
    latents = total[:, : difference.shape[1]] if key == CONV_IN else total
    # base - fine_tune is subtracted, not the reverse added: adding a zero would turn a weight of -0.0 into 0.0
    latents.sub_(difference)
    result = total.to(FLOATS[fine_tune.dtype])
    if not _is_finite(result):
        raise _explain_not_finite(key, inpaint, fine_tune, base)
    return result.reshape(-1).view(torch.uint8)


def _read_float32(stored: StoredTensor) -> Tensor:
    """A tensor in float32, in memory that it shares with nothing."""
    return read_bytes(stored).view(FLOATS[stored.dtype]).reshape(stored.shape).float()


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _explain_not_finite(
    key: str, inpaint: StoredTensor, fine_tune: StoredTensor, base: StoredTensor
) -> WeightsError:
    for stored in (inpaint, fine_tune, base):
        if not _is_finite(_read_float32(stored)):
            return WeightsError(stored.ranges[0].file, f"{key} contains NaN or infinity")
    reason = f"{key}: the sum is too large for its dtype, {fine_tune.dtype}"
    return WeightsError(fine_tune.ranges[0].file, reason)


def _build_markers(model: Detection) -> dict[str, StoredTensor]:
    """The markers of a velocity model: neither its scheduler's config nor its file name is part of the result."""
    names = ("v_pred", "ztsnr") if model.zsnr else ("v_pred",)
    return {name: StoredTensor("F32", (0,), ()) for name in names if model.prediction == "v"}


def _build_metadata(inpaint: SourceModel, fine_tune: SourceModel, base: SourceModel) -> dict[str, str]:
    """The fine-tune's metadata with the merge recorded under the keys of https://github.com/Stability-AI/ModelSpec."""
    old = fine_tune.checkpoint.metadata
    metadata = {key: text for key, text in old.items() if not STALE_METADATA.match(key)}
    architecture = FAMILIES[fine_tune.detection.family].inpainting_architecture
    assert architecture is not None
    metadata["modelspec.architecture"] = architecture
    metadata["modelspec.title"] = f"{_title(fine_tune)} inpainting"
    metadata["modelspec.merged_from"] = ", ".join(_title(source) for source in (inpaint, fine_tune, base))
    if fine_tune.detection.prediction in PREDICTIONS and not fine_tune.detection.is_assumed:
        metadata["modelspec.prediction_type"] = PREDICTIONS[fine_tune.detection.prediction]
    if METADATA_KEY in metadata:
        unet = dict(fine_tune.architecture.unet) | {"in_channels": 9}
        metadata[METADATA_KEY] = replace(fine_tune.architecture, unet=unet).to_json()
    return dict(sorted(metadata.items()))


def _title(source: SourceModel) -> str:
    name = source.path.name or source.path.resolve().name
    return source.checkpoint.metadata.get("modelspec.title") or name.removesuffix(".safetensors")


def _write(path: Path, planned: Mapping[str, PlannedTensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; tensors of the widest dtypes come first, so that all are aligned."""
    order = sorted(planned, key=lambda key: (-DTYPE_BITS[planned[key].dtype], key))
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
            file.write(planned[key].read().numpy().data)
