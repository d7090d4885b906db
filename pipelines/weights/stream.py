"""Read tensors of files onto a device, block by block in the order of the files, while those before them are used.

Threads read blocks into a few buffers that are used again and again, so nothing is in memory twice but the buffers.
For a GPU they are page-locked, and the copies run by themselves: a buffer is filled again when its copy has ended.
"""

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

import torch
from torch import Tensor

from pipelines.errors import WeightsError
from pipelines.weights.header import TensorRef

BLOCK = 1 << 25
"""Bytes of a buffer, a multiple of every dtype's size."""
BUFFERS, READERS = 4, 2
"""Two threads read a third faster than one from a disk that is behind a network, and there is one block for each to
read while others are used."""
CHUNK = 1 << 15
"""Values that are converted at once: they fit into a core's cache, and torch uses one thread for so few."""
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""The dtypes of weights, and of numbers that trainers also write as integers."""
_State: TypeAlias = tuple[int, int, int]
"""Inode, size and modification time of a file, which show that it was replaced or written to."""


class CopyEvent(Protocol):
    """The end of copies that a device makes by itself."""

    def record(self) -> None:
        """Set it to the end of all copies that have been started."""
        ...

    def wait(self) -> None:
        """Wait for it; returns at once if none was set. On any thread."""
        ...


class CudaCopyEvent:
    """The end of copies to a CUDA device, on the stream that is current when `record` is called."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._event = device, cast("Any", torch.cuda.Event)()

    def record(self) -> None:
        self._event.record(torch.cuda.current_stream(self._device))

    def wait(self) -> None:
        self._event.synchronize()


class Piece(NamedTuple):
    """Bytes of a tensor that are read at once, as offsets from the beginning of its file, or used from a memory map."""

    ref: TensorRef
    start: int
    end: int
    is_mapped: bool = False


class Buffer(NamedTuple):
    """Memory for a block, and the event after which it may be overwritten; None if copies from it are synchronous."""

    content: Tensor
    copied: CopyEvent | None = None


def is_asynchronous(device: torch.device) -> bool:
    """Return whether copies from page-locked memory to a device run by themselves, and casts are faster there."""
    return device.type == "cuda"


def make_buffers(device: torch.device) -> tuple[Buffer, ...]:
    """Return the buffers for reading tensors onto a device."""
    if not is_asynchronous(device):
        return tuple(Buffer(torch.empty(BLOCK, dtype=torch.uint8)) for _ in range(BUFFERS))
    return tuple(Buffer(allocate_pinned(BLOCK), CudaCopyEvent(device)) for _ in range(BUFFERS))


def allocate_pinned(size: int) -> Tensor:
    """Return page-locked memory, or plain memory where the system allows no more of it."""
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    except RuntimeError:
        return torch.empty(size, dtype=torch.uint8)


def stream_tensors(
    targets: Sequence[tuple[TensorRef, torch.dtype | None]],
    device: torch.device,
    buffers: Sequence[Buffer] | None = None,
) -> Generator[tuple[int, Tensor | None]]:
    """Read tensors in the order of their files and offsets, and yield the index of each with the tensor.

    Args:
        targets: tensors and the dtype to cast each to. A tensor with None is used from a memory map: it is only read
            ahead into the system's cache, and None is yielded.
        buffers: those of `make_buffers`, unless a test has its own.

    Raises:
        WeightsError: a file cannot be read, became shorter or was written to.
    """
    order = sorted(range(len(targets)), key=lambda index: (targets[index][0].file, targets[index][0].start))
    blocks = group_pieces((targets[index][0], targets[index][1] is None) for index in order)
    indices, tensor = iter(order), None
    index, dtype = -1, None
    for block, buffer in _read_blocks(blocks, make_buffers(device) if buffers is None else buffers):
        for piece in block:
            if piece.start == piece.ref.start:
                index = next(indices)
                dtype = targets[index][1]
                tensor = None if dtype is None else _allocate(piece.ref, dtype, device)
            if tensor is not None:
                _copy_piece(tensor, piece, buffer.content, piece.start - block[0].start)
            if piece.end == piece.ref.end:
                yield index, None if tensor is None or dtype is None else tensor.to(dtype)
        if buffer.copied is not None:
            buffer.copied.record()


def group_pieces(tensors: Iterable[tuple[TensorRef, bool]]) -> Iterator[tuple[Piece, ...]]:
    """Split tensors into blocks without gaps of `BLOCK` bytes at most.

    Args:
        tensors: in the order of their files, each with whether it is used from a memory map.
    """
    block: list[Piece] = []
    for ref, is_mapped in tensors:
        for start in range(ref.start, ref.end, BLOCK) or (ref.start,):
            piece = Piece(ref, start, min(ref.end, start + BLOCK), is_mapped)
            if block and not (_adjoins(block[-1], piece) and piece.end - block[0].start <= BLOCK):
                yield tuple(block)
                block = []
            block.append(piece)
    if block:
        yield tuple(block)


def _adjoins(piece: Piece, following: Piece) -> bool:
    is_alike = piece.ref.file == following.ref.file and piece.is_mapped == following.is_mapped
    return is_alike and piece.end == following.start


def _allocate(ref: TensorRef, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Where a tensor is read to: in its own dtype where the device casts it."""
    return torch.empty(
        ref.shape, dtype=DTYPES[ref.dtype] if is_asynchronous(device) else dtype, device=device
    )


def _copy_piece(tensor: Tensor, piece: Piece, content: Tensor, offset: int) -> None:
    """Copy the part of a tensor that a buffer has at `offset`."""
    source, dtype = content[offset : offset + piece.end - piece.start], DTYPES[piece.ref.dtype]
    if offset % dtype.itemsize:  # a file may have its tensors anywhere
        source = source.clone()
    source, first = source.view(dtype), (piece.start - piece.ref.start) // dtype.itemsize
    target = tensor.view(-1)[first : first + len(source)]
    if is_asynchronous(tensor.device):
        target.copy_(source, non_blocking=True)
        return
    converted = target if target.is_cpu else torch.empty_like(target, device="cpu")
    convert(source, converted)
    if converted is not target:
        target.copy_(converted)


def convert(source: Tensor, target: Tensor) -> None:
    """Copy a vector into one of another dtype.

    Between float16 and bfloat16 by way of float32, which gives the same values four times as fast on a CPU: torch has
    vector instructions for both halves.
    """
    if {source.dtype, target.dtype} != {torch.float16, torch.bfloat16}:
        target.copy_(source)
        return
    wide = torch.empty(CHUNK, dtype=torch.float32)
    for start in range(0, len(source), CHUNK):
        part = source[start : start + CHUNK]
        target[start : start + CHUNK].copy_(wide[: len(part)].copy_(part))


def _read_blocks(
    blocks: Iterable[tuple[Piece, ...]], buffers: Sequence[Buffer]
) -> Generator[tuple[tuple[Piece, ...], Buffer]]:
    """Yield blocks, and the buffers that hold them until the next one is asked for."""
    states: dict[Path, _State] = {}
    pending: deque[tuple[tuple[Piece, ...], Buffer, Future[None]]] = deque()
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="weights")
    try:
        for number, block in enumerate(blocks):
            if len(pending) == len(buffers):
                yield _wait_for_block(*pending.popleft())
            path, buffer = block[0].ref.file, buffers[number % len(buffers)]
            if path not in states:
                states[path] = _read_state(path)
            pending.append((block, buffer, pool.submit(_read_block, block, buffer, states[path])))
        while pending:
            yield _wait_for_block(*pending.popleft())
    finally:
        pool.shutdown(cancel_futures=True)
    for path, state in states.items():
        _require_unchanged(path, state, _read_state(path))


def _wait_for_block(
    block: tuple[Piece, ...], buffer: Buffer, reading: Future[None]
) -> tuple[tuple[Piece, ...], Buffer]:
    reading.result()
    return block, buffer


def _read_block(block: tuple[Piece, ...], buffer: Buffer, state: _State) -> None:
    """Read a block, on a reader's thread."""
    if buffer.copied is not None:
        buffer.copied.wait()
    path, start, end = block[0].ref.file, block[0].start, block[-1].end
    rest = memoryview(cast("Any", buffer.content.numpy()))[: end - start]
    try:
        with path.open("rb", buffering=0) as file:
            _require_unchanged(path, state, _to_state(os.fstat(file.fileno())))
            if block[0].is_mapped and state[1] >= end and read_ahead(file.fileno(), start, end):
                return
            file.seek(start)
            while rest and (count := file.readinto(rest)):
                rest = rest[count:]
    except OSError as error:
        raise WeightsError(path, f"cannot be read: {error.strerror}") from error
    if rest:
        raise WeightsError(path, "it became shorter while it was read")


def read_ahead(descriptor: int, start: int, end: int) -> bool:
    """Let the system read a part of a file into its cache, where it is not there yet; False if it cannot be asked to.

    That takes no time of the CPU's for what is in the cache, and no copy.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_WILLNEED)
    return True


def _read_state(path: Path) -> _State:
    try:
        return _to_state(path.stat())
    except OSError as error:
        raise WeightsError(path, f"cannot be read: {error.strerror}") from error


def _to_state(status: os.stat_result) -> _State:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _require_unchanged(path: Path, before: _State, now: _State) -> None:
    if now != before:
        raise WeightsError(path, "it changed while it was read")
