"""View any SDXL checkpoint in the original single-file layout: which bytes of which file make up each tensor.

Only headers are read for that. Contents are read by seeking, into memory of our own: the pages of a memory map
would count as memory held.
"""

import re
from typing import NamedTuple

import torch
from torch import Tensor

from pipelines.errors import WeightsError
from pipelines.weights.architecture import Architecture
from pipelines.weights.checkpoint import TEXT_ENCODER_FOLDERS, UNET_PREFIX, VAE_PREFIX, Checkpoint
from pipelines.weights.families import CONV_IN_KEYS, FAMILIES
from pipelines.weights.header import TensorRef
from pipelines.weights.key_map import OLD_ATTENTION, MappedKey, map_text_keys, map_unet_keys, map_vae_keys
from pipelines.weights.naming import IGNORED_KEY, find_component

UNET_NAMINGS = ((UNET_PREFIX, False), ("unet.", True), ("", False), ("", True))
"""For each of CONV_IN_KEYS, the prefix of a UNet's keys, and whether they have diffusers' names."""
COMPANION_KEY = re.compile(rf"{re.escape(VAE_PREFIX)}|conditioner\.|edm_vpred\.|(v_pred|ztsnr)$")
NEW_ATTENTION = {old: new for new, old in OLD_ATTENTION.items()}


class StoredTensor(NamedTuple):
    """A tensor of the single-file layout; its bytes are those of the ranges, concatenated."""

    dtype: str
    shape: tuple[int, ...]
    ranges: tuple[TensorRef, ...]
    transposed: bool = False  # the files store the layout's columns as rows

    @property
    def size(self) -> int:
        """Number of bytes."""
        return sum(part.end - part.start for part in self.ranges)


def find_unet_tensors(checkpoint: Checkpoint, architecture: Architecture) -> dict[str, StoredTensor]:
    """Return a UNet's tensors under their original keys, from any layout.

    The checkpoint must have passed `pipelines.weights.detect.detect`, so its first convolution exists.
    """
    prefix, has_diffusers_names = next(
        naming for key, naming in zip(CONV_IN_KEYS, UNET_NAMINGS, strict=True) if key in checkpoint.tensors
    )
    tensors = {
        key.removeprefix(prefix): StoredTensor(ref.dtype, ref.shape, (ref,))
        for key, ref in checkpoint.tensors.items()
        if key.startswith(prefix) and find_component(key) in {None, "unet"} and not IGNORED_KEY.search(key)
    }
    if not has_diffusers_names:
        return {UNET_PREFIX + name: stored for name, stored in tensors.items()}
    mapped = map_unet_keys(tensors, architecture.unet)
    return {mapped[name].key: stored for name, stored in tensors.items()}


def find_companion_tensors(checkpoint: Checkpoint, architecture: Architecture) -> dict[str, StoredTensor]:
    """Return the tensors outside the UNet under their original keys: VAE, text encoders and markers, if present.

    Raise WeightsError if a text encoder of a diffusers layout is not CLIP's.
    """
    tensors: dict[str, StoredTensor] = {}
    thirds: dict[str, dict[int, StoredTensor]] = {}
    for key, ref in checkpoint.tensors.items():
        stored = StoredTensor(ref.dtype, ref.shape, (ref,))
        folder, _, name = key.partition(".")
        if COMPANION_KEY.match(key):
            tensors[key] = stored
        elif folder in ("vae", *TEXT_ENCODER_FOLDERS) and not IGNORED_KEY.search(key):
            mapped = _map_key(checkpoint, folder, name, architecture)
            if mapped.storage == "third":
                thirds.setdefault(mapped.key, {})[mapped.part] = stored
            else:
                tensors[mapped.key] = _convert_shape(checkpoint, key, stored, mapped)
    return tensors | {key: _stack_thirds(checkpoint, key, parts) for key, parts in thirds.items()}


def read_bytes(stored: StoredTensor) -> Tensor:
    """Read a tensor's bytes, (size,) of uint8; raise WeightsError if a file is gone or has become shorter."""
    content = torch.empty(stored.size, dtype=torch.uint8)
    buffer = content.numpy().data
    for part in stored.ranges:
        length = part.end - part.start
        try:
            with part.file.open("rb") as file:
                file.seek(part.start)
                count = file.readinto(buffer[:length])
        except OSError as error:
            raise WeightsError(part.file, f"cannot be read: {error.strerror}") from error
        if count != length:
            raise WeightsError(part.file, "it became shorter while it was read")
        buffer = buffer[length:]
    if not stored.transposed or not stored.size:
        return content
    rows, columns = stored.shape
    return content.view(columns, rows, -1).transpose(0, 1).reshape(-1)


def _map_key(checkpoint: Checkpoint, folder: str, name: str, architecture: Architecture) -> MappedKey:
    if folder == "vae":
        name = ".".join(NEW_ATTENTION.get(part, part) for part in name.split("."))
        return map_vae_keys([name], architecture.vae)[name]
    try:
        return map_text_keys([name], architecture, TEXT_ENCODER_FOLDERS.index(folder))[name]
    except (KeyError, ValueError):
        title = FAMILIES[architecture.family].title
        reason = f"{folder}.{name} belongs to no text encoder of {title}"
        raise WeightsError(checkpoint.path, reason) from None


def _convert_shape(checkpoint: Checkpoint, key: str, stored: StoredTensor, mapped: MappedKey) -> StoredTensor:
    """The tensor with the original layout's shape."""
    if mapped.storage == "same" or len(stored.shape) == 4:
        return stored
    if len(stored.shape) != 2:
        raise WeightsError(checkpoint.path, f"{key} has the shape {stored.shape}, which is no matrix")
    if mapped.storage == "conv":
        return stored._replace(shape=(*stored.shape, 1, 1))
    return stored._replace(shape=stored.shape[::-1], transposed=True)


def _stack_thirds(checkpoint: Checkpoint, key: str, parts: dict[int, StoredTensor]) -> StoredTensor:
    """Stack query, key and value into OpenCLIP's one tensor."""
    kinds = {(stored.dtype, stored.shape) for stored in parts.values()}
    if len(parts) != 3 or len(kinds) != 1:
        reason = f"{key}: its query, key and value are not all present, or not alike"
        raise WeightsError(checkpoint.path, reason)
    dtype, shape = kinds.pop()
    ranges = tuple(part for number in range(3) for part in parts[number].ranges)
    return StoredTensor(dtype, (3 * shape[0], *shape[1:]), ranges)
