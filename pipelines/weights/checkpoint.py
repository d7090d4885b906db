"""Checkpoints on disk: a single file, a diffusers folder or one component of it. Only headers are read.

Knows nothing about networks.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipelines.errors import WeightsError
from pipelines.weights.config_file import read_config
from pipelines.weights.header import PICKLE_REFUSED, PICKLE_SUFFIXES, TensorRef, read_header

Layout = Literal["single", "diffusers"]

BLOCK = 1 << 20
TEXT_ENCODER_FOLDERS = ("text_encoder", "text_encoder_2")
COMPONENT_FOLDERS = ("unet", "vae", *TEXT_ENCODER_FOLDERS)
UNET_PREFIX, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."
"""What the keys of a UNet and of a VAE begin with in a single file."""
COMPONENT_FILE = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>\w+))?"
    r"(?:-(?P<shard>\d{5})-of-(?P<total>\d{5}))?(?:\.(?P<variant_last>\w+))?\.safetensors"
)
"""A component's weight file; older versions of diffusers wrote a variant after the number of the shard."""
VARIANTS = ("", "fp32", "bf16", "fp16", "non_ema", "fp8")
"""Variants of a component, the most accurate first; others come after them."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A single file, or a diffusers folder whose keys are prefixed with the component: `unet.`, `vae.` and so on."""

    path: Path
    layout: Layout
    tensors: Mapping[str, TensorRef]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    scheduler: Mapping[str, object] = field(default_factory=dict[str, object])

    def find(self, keys: tuple[str, ...]) -> TensorRef | None:
        """Return the tensor under the first of `keys` that exists, or None."""
        return next((self.tensors[key] for key in keys if key in self.tensors), None)


def open_checkpoint(path: Path) -> Checkpoint:
    """Read the headers of a file, a diffusers folder or one component; raise WeightsError for an unusable one."""
    try:
        return _open_folder(path) if path.is_dir() else _open_file(path)
    except OSError as error:
        raise WeightsError(path, f"cannot be read: {error.strerror}") from error


def _open_file(path: Path) -> Checkpoint:
    header = read_header(path)
    return Checkpoint(path, "single", header.tensors, header.metadata)


def _open_folder(path: Path) -> Checkpoint:
    components = [(path / name, f"{name}.") for name in COMPONENT_FOLDERS if (path / name).is_dir()]
    if not components:
        if not (path / "config.json").is_file():
            reason = "a folder without unet/; name the safetensors file in it, or a diffusers folder"
            raise WeightsError(path, reason)
        components = [(path, "")]
    tensors: dict[str, TensorRef] = {}
    for folder, prefix in components:
        for file in component_files(folder):
            stored = {prefix + key: tensor for key, tensor in read_header(file).tensors.items()}
            if not tensors.keys().isdisjoint(stored):
                raise WeightsError(
                    file, "some of its tensors are in another shard too; remove one of the two"
                )
            tensors |= stored
    return Checkpoint(path, "diffusers", tensors, scheduler=_read_scheduler(path))


def checkpoint_files(checkpoint: Checkpoint) -> tuple[Path, ...]:
    """Return the files that hold a checkpoint's tensors, each once."""
    return tuple(dict.fromkeys(tensor.file for tensor in checkpoint.tensors.values()))


def component_files(folder: Path) -> tuple[Path, ...]:
    """Return the weight files of a component's most accurate variant; raise WeightsError if any is missing."""
    variants: dict[str, dict[int, dict[int, Path]]] = {}
    for file in sorted(folder.iterdir()):
        match = COMPONENT_FILE.fullmatch(file.name)
        if match is not None:
            variant, total = match["variant"] or match["variant_last"] or "", int(match["total"] or 1)
            variants.setdefault(variant, {}).setdefault(total, {})[int(match["shard"] or 1)] = file
    if not variants:
        raise WeightsError(folder, _explain_empty(folder))
    return _complete_shards(folder, variants[min(variants, key=_rank)])


def _rank(variant: str) -> tuple[int, str]:
    return (VARIANTS.index(variant) if variant in VARIANTS else len(VARIANTS)), variant


def _explain_empty(folder: Path) -> str:
    if any(file.suffix in PICKLE_SUFFIXES for file in folder.iterdir()):
        return PICKLE_REFUSED
    return "a folder without model.safetensors or diffusion_pytorch_model.safetensors, of any variant"


def _complete_shards(folder: Path, sets: Mapping[int, Mapping[int, Path]]) -> tuple[Path, ...]:
    """The files of the only complete set of shards; `sets` has each set's files, by their number, by its size."""
    complete = [total for total, shards in sets.items() if set(shards) == set(range(1, total + 1))]
    if 1 in complete:
        return (sets[1][1],)
    if len(complete) > 1:
        reason = f"shards of {' and of '.join(map(str, complete))} files; remove all sets but one"
        raise WeightsError(folder, reason)
    if not complete:
        total = max(sets, key=lambda size: len(sets[size]))
        reason = f"only {len(sets[total])} of {total} shards are present; download the others"
        raise WeightsError(folder, reason)
    return tuple(file for _, file in sorted(sets[complete[0]].items()))


def _read_scheduler(path: Path) -> Mapping[str, object]:
    file = path / "scheduler" / "scheduler_config.json"
    return read_config(file) if file.is_file() else {}


def fingerprint(path: Path) -> str:
    """Return eight upper-case hex digits that identify the weights; takes a fraction of a second at any size.

    They are the start of SHA-256 over the header (its length included) and 64 evenly spaced blocks of 1 MiB;
    for a diffusers folder, over all its files in order.
    """
    digest = hashlib.sha256()
    checkpoint = open_checkpoint(path)
    for file in checkpoint_files(checkpoint):
        # the tensors follow the header without a gap
        length = min(tensor.start for tensor in checkpoint.tensors.values() if tensor.file == file)
        spare = max(0, file.stat().st_size - length - BLOCK)
        with file.open("rb") as stream:
            digest.update(stream.read(length))
            for start in sorted({length + spare * k // 63 for k in range(64)}):
                stream.seek(start)
                digest.update(stream.read(BLOCK))
    return digest.hexdigest()[:8].upper()
