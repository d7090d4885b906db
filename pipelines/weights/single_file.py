"""Any SDXL checkpoint as the original single-file layout holds it: which bytes of which file make each tensor.

Nothing is read to know that but headers. Files are read by seeking, into memory of our own: the pages of a memory
map would count as memory held.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pipelines.errors import WeightsError
from pipelines.weights.architecture import Architecture
from pipelines.weights.checkpoint import Checkpoint, checkpoint_files, read_header
from pipelines.weights.detect import FIRST
from pipelines.weights.key_map import (
    OLD_ATTENTION,
    UNET,
    VAE,
    MappedKey,
    map_text_keys,
    map_unet_keys,
    map_vae_keys,
)
from pipelines.weights.load import JUNK

# for each spelling of the first convolution's key: what stands before a UNet's keys, and whether diffusers named them
PLACES = ((UNET, False), ("unet.", True), ("", False), ("", True))
COMPANIONS = re.compile(rf"{re.escape(VAE)}|conditioner\.|edm_vpred\.|(v_pred|ztsnr)$")
TOWERS = ("text_encoder", "text_encoder_2")
ELSEWHERE = (VAE, "conditioner.", "vae.", *(f"{tower}." for tower in TOWERS))
NEW_ATTENTION = {then: now for now, then in OLD_ATTENTION.items()}


class ByteRange(NamedTuple):
    """Bytes `start` to `end` of a file."""

    file: Path
    start: int
    end: int


class StoredTensor(NamedTuple):
    """A tensor of the single-file layout: its bytes are the stretches, one behind the other.

    `turned`: they hold the rows where the layout has columns.
    """

    dtype: str
    shape: tuple[int, ...]
    stretches: tuple[ByteRange, ...]
    turned: bool = False

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return sum(stretch.end - stretch.start for stretch in self.stretches)


def unet_tensors(checkpoint: Checkpoint, architecture: Architecture) -> dict[str, StoredTensor]:
    """A UNet's tensors under their original keys, whatever layout they lie in.

    The checkpoint must have been recognised (`pipelines.weights.detect.identify`): its first convolution is there.
    """
    tensors = dict(_stored(checkpoint))
    prefix, renamed = next(
        place for key, place in zip(FIRST, PLACES, strict=True) if key in checkpoint.tensors
    )
    found = {
        key.removeprefix(prefix): stored
        for key, stored in tensors.items()
        if key.startswith(prefix) and not key.startswith(ELSEWHERE) and not JUNK.search(key)
    }
    if not renamed:
        return {UNET + name: stored for name, stored in found.items()}
    sources = map_unet_keys(found, architecture.unet)
    return {sources[name].key: stored for name, stored in found.items()}


def companion_tensors(checkpoint: Checkpoint, architecture: Architecture) -> dict[str, StoredTensor]:
    """What stands beside the UNet, under its original keys: VAE, text encoders and markers, as far as they are there.

    Raises:
        WeightsError: a text encoder of a diffusers layout is not CLIP's.
    """
    found: dict[str, StoredTensor] = {}
    thirds: dict[str, dict[int, StoredTensor]] = {}
    for key, stored in _stored(checkpoint):
        folder, _, name = key.partition(".")
        if COMPANIONS.match(key):
            found[key] = stored
        elif folder in ("vae", *TOWERS) and not JUNK.search(key):
            source = _source(checkpoint, folder, name, architecture)
            if source.shaping == "third":
                thirds.setdefault(source.key, {})[source.part] = stored
            else:
                found[source.key] = _shaped(checkpoint, key, stored, source)
    return found | {key: _joined(checkpoint, key, parts) for key, parts in thirds.items()}


def read_bytes(stored: StoredTensor) -> Tensor:
    """The bytes of a tensor, (size,) of uint8; WeightsError if a file is gone or shorter than its header said."""
    content = torch.empty(stored.size, dtype=torch.uint8)
    room = content.numpy().data
    for stretch in stored.stretches:
        length = stretch.end - stretch.start
        _fill(stretch, room[:length])
        room = room[length:]
    if not stored.turned or not stored.size:
        return content
    rows, columns = stored.shape
    return content.view(columns, rows, -1).transpose(0, 1).reshape(-1)


def _stored(checkpoint: Checkpoint) -> Iterator[tuple[str, StoredTensor]]:
    headers = {file: read_header(file).tensors for file in checkpoint_files(checkpoint)}
    for key, located in checkpoint.tensors.items():
        entry = headers[located.file][located.key]
        yield key, StoredTensor(entry.dtype, entry.shape, (ByteRange(located.file, entry.start, entry.end),))


def _fill(stretch: ByteRange, room: memoryview) -> None:
    try:
        with stretch.file.open("rb") as file:
            file.seek(stretch.start)
            found = file.readinto(room)
    except OSError as error:
        raise WeightsError(stretch.file, f"cannot be read: {error.strerror}") from error
    if found != len(room):
        raise WeightsError(stretch.file, "it became shorter while it was read")


def _source(checkpoint: Checkpoint, folder: str, name: str, architecture: Architecture) -> MappedKey:
    if folder == "vae":
        current = ".".join(NEW_ATTENTION.get(part, part) for part in name.split("."))
        return map_vae_keys([current], architecture.vae)[current]
    try:
        return map_text_keys([name], architecture, TOWERS.index(folder))[name]
    except (KeyError, ValueError):
        raise WeightsError(checkpoint.path, f"{folder}.{name} belongs to no text encoder of SDXL's") from None


def _shaped(checkpoint: Checkpoint, key: str, stored: StoredTensor, source: MappedKey) -> StoredTensor:
    if source.shaping == "same" or len(stored.shape) == 4:
        return stored
    if len(stored.shape) != 2:
        raise WeightsError(checkpoint.path, f"{key} has the shape {stored.shape}, which is no matrix")
    if source.shaping == "conv":
        return stored._replace(shape=(*stored.shape, 1, 1))
    return stored._replace(shape=stored.shape[::-1], turned=True)


def _joined(checkpoint: Checkpoint, key: str, parts: dict[int, StoredTensor]) -> StoredTensor:
    """Query, key and value as the one tensor that OpenCLIP has."""
    kinds = {(stored.dtype, stored.shape) for stored in parts.values()}
    if len(parts) != 3 or len(kinds) != 1:
        raise WeightsError(
            checkpoint.path, f"{key}: its query, key and value are not all there, or not alike"
        )
    dtype, shape = kinds.pop()
    stretches = (stretch for number in range(3) for stretch in parts[number].stretches)
    return StoredTensor(dtype, (3 * shape[0], *shape[1:]), tuple(stretches))
