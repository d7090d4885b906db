"""Headers of safetensors files: read within bounds and checked as a whole, so that the safetensors library opens them.

The format: 8 bytes of header length, the header as JSON, then the tensors without gaps
(https://github.com/huggingface/safetensors#format).
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import BinaryIO, NamedTuple, NoReturn, cast

from pipelines.errors import WeightsError, abbreviate

MAX_HEADER_BYTES = 1 << 24
"""The format allows 100 MB; SDXL's header has 0.4 MB, and a trainer's metadata a few more."""
MAX_CONTAINERS = 300_000
"""Lists and objects in a header, each tensor has three: 16 MB of `[],` would need 20 times the memory."""
MAX_SIZE, MAX_DIMENSIONS = 1 << 63, 32
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
PICKLE_SUFFIXES = {".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle"}
PICKLE_REFUSED = "a pickle can run code when it is opened, so it is not read; use safetensors"
DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64,
    "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "C64": 64,
}  # fmt: skip
"""Bits of each dtype of the format."""
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""The dtypes that weights can have."""

FOREIGN_FORMATS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a git-LFS pointer, not the file itself; fetch it with `git lfs pull`"),
    (b"PK", PICKLE_REFUSED),
    (b"\x80", PICKLE_REFUSED),
    (b"<", "a web page, not a model; the download went wrong"),
    (b"GGUF", "a GGUF file, not safetensors"),
)
"""First bytes of files that are often mistaken for a model, and the reason to give for each."""


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
    """The header of a safetensors file."""

    path: Path
    tensors: Mapping[str, TensorRef]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """Read a file's header; raise WeightsError if it is missing, unreadable, damaged or of another format."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise WeightsError(path, PICKLE_REFUSED)
    try:
        status = path.stat()
        if S_ISDIR(status.st_mode):
            raise WeightsError(path, "a folder, but a file is required")
        if not S_ISREG(status.st_mode):  # opening a named pipe would wait for its other end
            raise WeightsError(path, "a pipe, device or socket, but a regular file is required")
        with path.open("rb") as file:
            return _parse_header(path, file, status.st_size)
    except FileNotFoundError:
        raise WeightsError(path, "no such file") from None
    except OSError as error:
        raise WeightsError(path, f"cannot be read: {error.strerror}") from error


def _parse_header(path: Path, file: BinaryIO, size: int) -> Header:
    first_bytes = file.read(32)
    length = int.from_bytes(first_bytes[:8], "little")
    if first_bytes[8:9] != b"{":
        raise WeightsError(path, _describe_format(first_bytes, length))
    if 8 + length > size:
        raise WeightsError(path, f"truncated: its header alone is {length} bytes, the file {size}")
    if length > MAX_HEADER_BYTES:
        reason = f"a header of {length} bytes; up to {MAX_HEADER_BYTES} are read"
        raise WeightsError(path, reason)
    file.seek(8)
    fields = _parse_json(path, file.read(length))
    metadata = _parse_metadata(path, fields.pop("__metadata__", {}))
    tensors = {key: _parse_tensor(path, key, value, 8 + length) for key, value in fields.items()}
    _check_data(path, tensors.values(), 8 + length, size)
    return Header(path, tensors, metadata)


def _describe_format(first_bytes: bytes, length: int) -> str:
    if not first_bytes:
        return "an empty file"
    reasons = (reason for magic, reason in FOREIGN_FORMATS if first_bytes.startswith(magic))
    return next(reasons, f"not a safetensors file (it claims a header of {length} bytes)")


def _parse_json(path: Path, content: bytes) -> dict[str, object]:
    if content.count(b"[") + content.count(b"{") > MAX_CONTAINERS:
        reason = f"a header of more than {MAX_CONTAINERS} lists and objects, which is not read"
        raise WeightsError(path, reason)
    try:
        # like the library: UTF-8 only, without NaN and Infinity, and without halves of surrogate pairs
        fields = json.loads(content.decode(), parse_constant=_refuse_constant)
        if SURROGATE.search(content):
            json.dumps(fields, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise WeightsError(path, "not a safetensors file (its header is not JSON)") from error
    if not isinstance(fields, dict):
        raise WeightsError(path, "not a safetensors file (its header is not an object)")
    return cast("dict[str, object]", fields)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _parse_metadata(path: Path, metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict):
        raise WeightsError(path, "a damaged header: __metadata__ is not an object")
    pairs = cast("dict[str, object]", metadata)
    for key, value in pairs.items():
        if not isinstance(value, str):
            raise WeightsError(path, f"a damaged header: metadata {abbreviate(key)} is not a text")
    return cast("dict[str, str]", metadata)


def _parse_tensor(path: Path, key: str, value: object, offset: int) -> TensorRef:
    def refuse(reason: str) -> NoReturn:
        raise WeightsError(path, f"a damaged header: tensor {abbreviate(key)} {reason}")

    fields = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    if not {"dtype", "shape", "data_offsets"} <= fields.keys():
        refuse("lacks its dtype, shape or data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        refuse(f"has the dtype {abbreviate(str(dtype))}; known are {', '.join(DTYPE_BITS)}")
    if not _are_sizes(shape):
        refuse(f"has the shape {abbreviate(str(shape))}; it must be a list of whole numbers from 0")
    if not _are_sizes(offsets) or len(cast("list[int]", offsets)) != 2:
        refuse(f"has the data_offsets {abbreviate(str(offsets))}; they must be two whole numbers from 0")
    sizes, (start, end) = cast("list[int]", shape), cast("list[int]", offsets)
    bits = prod(sizes) * DTYPE_BITS[dtype]
    if (end - start) * 8 != bits:
        needed = f"{dtype} of the shape {tuple(sizes)} needs {-(-bits // 8)}"
        refuse(f"has {end - start} bytes, but {abbreviate(needed)}")
    return TensorRef(path, key, dtype, tuple(sizes), offset + start, offset + end)


def _are_sizes(value: object) -> bool:
    """Whether a value is a list of whole numbers that are sizes; JSON's true and false are none."""
    numbers = cast("list[object]", value) if isinstance(value, list) else [None]
    is_short = len(numbers) <= MAX_DIMENSIONS
    return is_short and all(type(number) is int and 0 <= number < MAX_SIZE for number in numbers)


def _check_data(path: Path, tensors: Iterable[TensorRef], start: int, size: int) -> None:
    """Raise WeightsError unless the tensors fill the file from `start` to its end, without gap or overlap."""
    position = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != position:
            what = "overlaps another" if tensor.start < position else "follows a gap"
            raise WeightsError(path, f"a damaged header: tensor {abbreviate(tensor.key)} {what}")
        position = tensor.end
    if position > size:
        raise WeightsError(path, f"truncated: {size} bytes of {position}; download it again")
    if position < size:
        raise WeightsError(path, f"{size - position} bytes after its last tensor; download it again")
