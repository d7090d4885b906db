"""Weight files on disk: headers, tensor locations, and the reasons for refusing a file. Only headers are read.

Knows nothing about networks. The format: 8 bytes of header length, the header as JSON, then the tensors
(https://github.com/huggingface/safetensors#format).
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, cast

from pipelines.errors import WeightsError

Layout = Literal["single", "diffusers"]

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
BLOCK = 1 << 20
TEXT_ENCODER_FOLDERS = ("text_encoder", "text_encoder_2")
COMPONENT_FOLDERS = ("unet", "vae", *TEXT_ENCODER_FOLDERS)
UNET_PREFIX, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."
"""What the keys of a UNet and of a VAE begin with in a single file."""
PICKLE_SUFFIXES = {".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle"}
PICKLE_REFUSED = "a pickle can run code when it is opened, so it is not read; use safetensors"
DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "U8": 1,
}  # fmt: skip

FOREIGN_FORMATS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a git-LFS pointer, not the file itself; fetch it with `git lfs pull`"),
    (b"PK", PICKLE_REFUSED),
    (b"\x80", PICKLE_REFUSED),
    (b"<", "a web page, not a model; the download went wrong"),
    (b"GGUF", "a GGUF file, not safetensors"),
)
"""First bytes of files that are often mistaken for a model, and the reason to give for each."""
COMPONENT_FILE = re.compile(r"(?:diffusion_pytorch_model|model)(?:\.fp16|-\d{5}-of-\d{5})*\.safetensors")


class TensorRef(NamedTuple):
    """A tensor in a file: its key there, and its byte offsets from the beginning of the file."""

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a safetensors file; `length` is the offset at which the tensor data begins."""

    path: Path
    tensors: Mapping[str, TensorRef]
    metadata: Mapping[str, str]
    length: int


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
    if not path.is_dir():
        header = read_header(path)
        return Checkpoint(path, "single", header.tensors, header.metadata)
    components = [(path / name, f"{name}.") for name in COMPONENT_FOLDERS if (path / name).is_dir()]
    if not components:
        if not (path / "config.json").is_file():
            reason = "a folder without unet/; name the safetensors file in it, or a diffusers folder"
            raise WeightsError(path, reason)
        components = [(path, "")]
    tensors: dict[str, TensorRef] = {}
    for folder, prefix in components:
        for file in component_files(folder):
            tensors |= {prefix + key: tensor for key, tensor in read_header(file).tensors.items()}
    return Checkpoint(path, "diffusers", tensors, scheduler=_read_scheduler(path))


def checkpoint_files(checkpoint: Checkpoint) -> tuple[Path, ...]:
    """Return the files that hold a checkpoint's tensors, each once."""
    return tuple(dict.fromkeys(tensor.file for tensor in checkpoint.tensors.values()))


def component_files(folder: Path) -> tuple[Path, ...]:
    """Return a component's weight files, `.fp16.` only without others; raise WeightsError if any is missing."""
    files = [file for file in sorted(folder.iterdir()) if COMPONENT_FILE.fullmatch(file.name)]
    files = [file for file in files if ".fp16" not in file.name] or files
    if not files:
        has_pickle = any(file.suffix in PICKLE_SUFFIXES for file in folder.iterdir())
        raise WeightsError(folder, PICKLE_REFUSED if has_pickle else "a folder without safetensors weights")
    unsharded = [file for file in files if "-of-" not in file.name]
    if unsharded:
        return (unsharded[0],)
    total = int(files[0].name.split("-of-")[1][:5])
    if len(files) != total:
        raise WeightsError(folder, f"only {len(files)} of {total} shards are present; download the others")
    return tuple(files)


def _read_scheduler(path: Path) -> Mapping[str, object]:
    file = path / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return {}
    try:
        return cast("dict[str, object]", json.loads(file.read_text("utf-8")))
    except ValueError as error:
        raise WeightsError(file, f"not JSON: {error}") from error


def read_header(path: Path) -> Header:
    """Read a file's header; raise WeightsError if it is missing, unreadable, damaged or of another format."""
    if path.is_dir():
        raise WeightsError(path, "a folder, but a file is required")
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise WeightsError(path, PICKLE_REFUSED)
    try:
        with path.open("rb") as file:
            return _parse_header(path, file)
    except FileNotFoundError:
        raise WeightsError(path, "no such file") from None
    except OSError as error:
        raise WeightsError(path, f"cannot be read: {error.strerror}") from error


def _parse_header(path: Path, file: BinaryIO) -> Header:
    size = path.stat().st_size
    first_bytes = file.read(32)
    length = int.from_bytes(first_bytes[:8], "little")
    if length > MAX_HEADER_BYTES or first_bytes[8:9] != b"{":
        raise WeightsError(path, _describe_format(first_bytes, length))
    if 8 + length > size:
        raise WeightsError(path, f"truncated: its header alone is {length} bytes, the file {size}")
    file.seek(8)
    fields = _parse_json(path, file.read(length))
    metadata = fields.pop("__metadata__", {})
    pairs = cast("dict[str, object]", metadata).items() if isinstance(metadata, dict) else ()
    texts = {key: text for key, text in pairs if isinstance(text, str)}  # the format allows only texts
    tensors = {key: _parse_tensor(path, key, value, 8 + length) for key, value in fields.items()}
    end = max((tensor.end for tensor in tensors.values()), default=8 + length)
    if end > size:
        raise WeightsError(path, f"truncated: {size} bytes of {end}; download it again")
    return Header(path, tensors, texts, 8 + length)


def _describe_format(first_bytes: bytes, length: int) -> str:
    if not first_bytes:
        return "an empty file"
    reasons = (reason for magic, reason in FOREIGN_FORMATS if first_bytes.startswith(magic))
    return next(reasons, f"not a safetensors file (it claims a header of {length} bytes)")


def _parse_json(path: Path, text: bytes) -> dict[str, object]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(path, "not a safetensors file (its header is not JSON)") from error
    if not isinstance(fields, dict):
        raise WeightsError(path, "not a safetensors file (its header is not an object)")
    return cast("dict[str, object]", fields)


def _parse_tensor(path: Path, key: str, value: object, offset: int) -> TensorRef:
    try:
        fields = cast("dict[str, object]", value)
        dtype, shape = cast("str", fields["dtype"]), tuple(cast("list[int]", fields["shape"]))
        start, end = cast("list[int]", fields["data_offsets"])
        size = prod(shape) * DTYPE_BYTES[dtype] if dtype in DTYPE_BYTES else end - start
        is_valid = 0 <= start <= end and end - start == size
    except (TypeError, KeyError, ValueError):
        is_valid, dtype, shape, start, end = False, "", (), 0, 0
    if not is_valid:
        raise WeightsError(path, f"a damaged header: tensor {key!r} has an invalid dtype, shape or offsets")
    return TensorRef(path, key, dtype, shape, offset + start, offset + end)


def fingerprint(path: Path) -> str:
    """Return eight upper-case hex digits that identify the weights; takes a fraction of a second at any size.

    They are the start of SHA-256 over the header (its length included) and 64 evenly spaced blocks of 1 MiB;
    for a diffusers folder, over all its files in order.
    """
    digest = hashlib.sha256()
    for file in checkpoint_files(open_checkpoint(path)):
        length = read_header(file).length
        spare = max(0, file.stat().st_size - length - BLOCK)
        with file.open("rb") as stream:
            digest.update(stream.read(length))
            for start in sorted({length + spare * k // 63 for k in range(64)}):
                stream.seek(start)
                digest.update(stream.read(BLOCK))
    return digest.hexdigest()[:8].upper()


def read_ahead(path: Path) -> None:
    """Read a file sequentially into the page cache, at the speed of the disk.

    Copying an uncached memory map to a device would fault it in page by page.
    """
    buffer = bytearray(16 * BLOCK)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
