"""Weight files as they lie on disk: what is in them, read from their headers alone, and every way one can be unfit.

Knows nothing of networks. The format: 8 bytes of header length, that much JSON, then the tensors
(https://github.com/huggingface/safetensors#format).
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, cast

from pipelines.errors import WeightsError

LONGEST_HEADER = 100_000_000  # the format's own limit
BLOCK = 1 << 20
FOLDERS = ("unet", "vae", "text_encoder", "text_encoder_2")
PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle"}
A_PICKLE = "a pickle can run code when it is opened, so it is not read; use safetensors"
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "U8": 1}

# first bytes of what people hold instead of a model, and what to tell them
STRANGERS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a git-LFS pointer, not the file itself; fetch it with `git lfs pull`"),
    (b"PK", A_PICKLE),
    (b"\x80", A_PICKLE),
    (b"<", "a web page, not a model; the download went wrong"),
    (b"GGUF", "a GGUF file, not safetensors"),
)
SHARD = re.compile(r"(?:diffusion_pytorch_model|model)(?P<tags>(?:\.fp16|-\d{5}-of-\d{5})*)\.safetensors")


class TensorEntry(NamedTuple):
    """One tensor of a file; `start` and `end` are its bytes, counted from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file says about itself; `length` is where its tensors begin."""

    path: Path
    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    length: int


class TensorRef(NamedTuple):
    """A tensor of a checkpoint: the file and the key it has there."""

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A single file, or a diffusers folder seen as one: there the keys begin with `unet.`, `vae.` and so on."""

    path: Path
    layout: Literal["single", "diffusers"]
    tensors: Mapping[str, TensorRef]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    scheduler: Mapping[str, object] = field(default_factory=dict[str, object])


def open_checkpoint(path: Path) -> Checkpoint:
    """Read the header of a file, or those of a diffusers folder or one of its components; WeightsError if unfit."""
    if not path.is_dir():
        header = read_header(path)
        return Checkpoint(path, "single", dict(_located(header, "")), header.metadata)
    tensors: dict[str, TensorRef] = {}
    for folder, prefix in _component_folders(path):
        for file in component_files(folder):
            tensors |= _located(read_header(file), prefix)
    return Checkpoint(path, "diffusers", tensors, scheduler=_scheduler(path))


def checkpoint_files(checkpoint: Checkpoint) -> tuple[Path, ...]:
    """The files a checkpoint's tensors lie in, each once."""
    return tuple(dict.fromkeys(located.file for located in checkpoint.tensors.values()))


def _located(header: Header, prefix: str) -> Iterator[tuple[str, TensorRef]]:
    for key, entry in header.tensors.items():
        yield prefix + key, TensorRef(header.path, key, entry.dtype, entry.shape)


def _component_folders(path: Path) -> list[tuple[Path, str]]:
    inside = [(path / name, f"{name}.") for name in FOLDERS if (path / name).is_dir()]
    if inside or (path / "config.json").is_file():
        return inside or [(path, "")]
    raise WeightsError(path, "a folder without unet/; name the safetensors file in it, or a diffusers folder")


def component_files(folder: Path) -> tuple[Path, ...]:
    """The files of one diffusers component: full precision if it is there, else `.fp16.`, all shards present."""
    found = [(file, match) for file in sorted(folder.iterdir()) if (match := SHARD.fullmatch(file.name))]
    full = [file for file, match in found if ".fp16" not in match["tags"]]
    chosen = full or [file for file, _ in found]
    if not chosen:
        pickled = any(file.suffix in PICKLES for file in folder.iterdir())
        raise WeightsError(folder, A_PICKLE if pickled else "a folder without safetensors weights")
    whole = [file for file in chosen if "-of-" not in file.name]
    shards = [file for file in chosen if "-of-" in file.name]
    return tuple(whole[:1]) or _all_shards(folder, shards)


def _all_shards(folder: Path, shards: list[Path]) -> tuple[Path, ...]:
    total = int(re.split(r"-of-", shards[0].name)[1][:5])
    if len(shards) != total:
        raise WeightsError(folder, f"{len(shards)} of {total} shards are there")
    return tuple(shards)


def _scheduler(path: Path) -> Mapping[str, object]:
    file = path / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return {}
    try:
        return cast("dict[str, object]", json.loads(file.read_text("utf-8")))
    except ValueError as error:
        raise WeightsError(file, f"not JSON: {error}") from error


def read_header(path: Path) -> Header:
    """Read and check the header of one safetensors file; WeightsError says what is wrong with any other file."""
    if path.is_dir():
        raise WeightsError(path, "a folder where a file is meant")
    if path.suffix.lower() in PICKLES:
        raise WeightsError(path, A_PICKLE)
    try:
        with path.open("rb") as file:
            return _parse(path, file)
    except FileNotFoundError:
        raise WeightsError(path, "no such file") from None
    except OSError as error:
        raise WeightsError(path, f"cannot be read: {error.strerror}") from error


def _parse(path: Path, file: BinaryIO) -> Header:
    size = path.stat().st_size
    lead = file.read(32)
    length = int.from_bytes(lead[:8], "little")
    if length > LONGEST_HEADER or lead[8:9] != b"{":
        raise WeightsError(path, _stranger(lead, length))
    if 8 + length > size:
        raise WeightsError(path, f"truncated: its header alone is {length} bytes, the file {size}")
    file.seek(8)
    fields = _json(path, file.read(length))
    metadata = _texts(fields.pop("__metadata__", {}))
    tensors = {key: _entry(path, key, value, 8 + length) for key, value in fields.items()}
    end = max((entry.end for entry in tensors.values()), default=8 + length)
    if end > size:
        raise WeightsError(path, f"truncated: {size} bytes of {end}; download it again")
    return Header(path, tensors, metadata, 8 + length)


def _stranger(lead: bytes, length: int) -> str:
    if not lead:
        return "an empty file"
    known = (reason for magic, reason in STRANGERS if lead.startswith(magic))
    return next(known, f"not a safetensors file (it claims a header of {length} bytes)")


def _json(path: Path, text: bytes) -> dict[str, object]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(path, "not a safetensors file (its header is not JSON)") from error
    if not isinstance(fields, dict):
        raise WeightsError(path, "not a safetensors file (its header is not an object)")
    return cast("dict[str, object]", fields)


def _texts(value: object) -> dict[str, str]:
    """The metadata, less whatever is not the text that the format asks for."""
    pairs = cast("dict[str, object]", value).items() if isinstance(value, dict) else ()
    return {key: text for key, text in pairs if isinstance(text, str)}


def _entry(path: Path, key: str, value: object, offset: int) -> TensorEntry:
    try:
        fields = cast("dict[str, object]", value)
        dtype, shape = cast("str", fields["dtype"]), tuple(cast("list[int]", fields["shape"]))
        start, end = cast("list[int]", fields["data_offsets"])
        fits = 0 <= start <= end and (dtype not in SIZES or end - start == prod(shape) * SIZES[dtype])
    except (TypeError, KeyError, ValueError):
        fits, dtype, shape, start, end = False, "", (), 0, 0
    if not fits:
        raise WeightsError(path, f"a damaged header: tensor {key!r} has no sound dtype, shape and offsets")
    return TensorEntry(dtype, shape, offset + start, offset + end)


def fingerprint(path: Path) -> str:
    """Eight upper-case hex digits that name the weights, in a fraction of a second whatever the size.

    The start of sha256 over the header (its length included) and 64 evenly spaced blocks of 1 MiB;
    over all files in order for a diffusers folder.
    """
    digest = hashlib.sha256()
    for file in checkpoint_files(open_checkpoint(path)):
        for block in _sample(file, read_header(file).length):
            digest.update(block)
    return digest.hexdigest()[:8].upper()


def _sample(path: Path, length: int) -> Iterator[bytes]:
    spare = max(0, path.stat().st_size - length - BLOCK)
    with path.open("rb") as file:
        yield file.read(length)
        for start in sorted({length + spare * k // 63 for k in range(64)}):
            file.seek(start)
            yield file.read(BLOCK)


def read_ahead(path: Path) -> None:
    """Pull a file into the page cache front to back.

    Copying a cold memory map to a device faults it in page by page; one sequential read first is as fast as the disk.
    """
    buffer = bytearray(16 * BLOCK)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
