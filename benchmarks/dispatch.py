"""A GPU that does not exist: torch's meta device, with what it does counted, and what a GPU refuses refused.

Tensors on it have shapes and dtypes but no memory. Under `DryDevice` every operation on them is counted, the bytes of
their storages are added up, what the host reads is answered with a made-up number, and an operation on tensors of two
devices or dtypes raises the error that it would raise on a GPU. Attention is one operation that allocates its output
alone, as torch's fused kernels do; on the meta device torch itself would compute it with a matrix of scores.

It sees what one thread does in inference mode.
"""

import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")
NUMBER = 1.0
"""What the host reads of floating-point tensors by default."""
Kind = Literal["read", "upload", "download"]
"""The host reads a number; data is copied to the device; data is copied from it. The host waits for each."""

aten = torch.ops.aten
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
CODE = str(Path(__file__).parents[1] / "pipelines")
FROM_PYTHON = (torch.tensor, torch.as_tensor, Tensor.new_tensor)
"""What makes tensors of numbers in Python, which is a copy if they are on a device."""
READS = (aten._local_scalar_dense, aten.equal)
ATTENTION = aten.scaled_dot_product_attention
SAME_DTYPE = (
    aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution, aten.native_group_norm, aten.native_layer_norm,
    ATTENTION,
)  # fmt: skip
"""What on a GPU takes tensors of one floating-point dtype alone, although it may take others on the meta device."""
NO_KERNELS = (aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten._unsafe_view)
"""What runs nothing on a device, besides views."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """Something the host waits for, and the innermost line of pipelines/ that asks for it."""

    kind: Kind
    place: str


@dataclass(slots=True)
class Counts:
    """What was asked of the device.

    Attributes:
        operations: those that run something; a kernel each, or some.
        views: those that do not.
    """

    operations: int = 0
    views: int = 0
    transfers: list[Transfer] = field(default_factory=list[Transfer])

    def count(self, kind: Kind) -> int:
        """Return the number of transfers of a kind."""
        return sum(transfer.kind == kind for transfer in self.transfers)


class LiveBytes:
    """The bytes of storages that exist, and the most there were.

    Attributes:
        live: those of the storages that were added.
        peak: the most since `restart`.
    """

    def __init__(self) -> None:
        self.live = self.peak = 0
        self._known = set[int]()

    def restart(self) -> None:
        """Let the peak be the most from now on."""
        self.peak = self.live

    def add(self, storage: torch.UntypedStorage) -> None:
        """Add a storage until it is freed; one that is known already counts once."""
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class DryDevice:
    """A context in which operations on meta tensors are counted and checked.

    Args:
        number: what the host reads of floating-point tensors; it reads True of others.

    Attributes:
        counts: of what was asked since the last `take_counts`.
        memory: bytes of the tensors that operations made. Weights are not among them: they were there before.
    """

    def __init__(self, number: float = NUMBER) -> None:
        self.counts, self.memory = Counts(), LiveBytes()
        self._number, self._stack = number, ExitStack()

    def __enter__(self) -> "DryDevice":
        self._stack.enter_context(_PythonMode(self))
        self._stack.enter_context(_OperationMode(self))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def take_counts(self) -> Counts:
        """Return the counts since the last call."""
        counts, self.counts = self.counts, Counts()
        return counts

    def note(self, kind: Kind) -> None:
        """Count a transfer."""
        self.counts.transfers.append(Transfer(kind, _find_place()))

    def read(self, tensor: Tensor) -> float | bool:
        """Count that the host reads a tensor, and return a number for it."""
        self.note("read")
        return self._number if tensor.is_floating_point() else True

    def download(self, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Count a copy to the host, and return zeros for it."""
        self.note("download")
        return torch.zeros(like.shape, dtype=dtype or like.dtype)


class _PythonMode(TorchFunctionMode):
    """Counts tensors made of numbers in Python, of which the other mode sees nothing."""

    def __init__(self, device: DryDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in FROM_PYTHON and output.is_meta:
            self._device.note("upload")
        return output


class _OperationMode(TorchDispatchMode):
    """Runs, counts and checks operations on meta tensors; passes those of the CPU on."""

    def __init__(self, device: DryDevice) -> None:
        super().__init__()
        self._device = device
        self._composites: dict[Any, bool] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet = kwargs or {}, func.overloadpacket
        leaves = _list_leaves([*args, *kwargs.values()])
        if not any(map(_is_meta, leaves)):
            return func(*args, **kwargs)
        if packet is not ATTENTION and self._is_composite(func):
            with self:
                return func._op_dk(COMPOSITE, *args, **kwargs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if packet in READS:
            return self._device.read(tensors[0])
        if (
            packet in (aten._to_copy, aten.copy_)
            and len({tensor.is_meta for tensor in tensors} | _target(kwargs)) > 1
        ):
            return self._copy(func, args, kwargs)
        _check(func, tensors, self._device)
        run: Any = SHAPES.get(packet, func)
        output = run(*args, **kwargs)
        self._count(func, tensors, output)
        return output

    def _is_composite(self, func: Any) -> bool:
        """Return whether torch makes an operation of others on every device; in inference mode it comes undivided.

        What Python code makes of it for compilers, which takes more memory and operations, does not count.
        """
        if func not in self._composites:
            self._composites[func] = torch._C._dispatch_has_kernel_for_dispatch_key(
                func.name(), COMPOSITE.name
            )
        return self._composites[func]

    def _copy(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """Copy between the devices."""
        if func.overloadpacket is aten.copy_:
            target, source = args[:2]
            if source.is_meta:
                return target.copy_(self._device.download(source))
        elif args[0].is_meta:
            return self._device.download(args[0], kwargs.get("dtype"))
        self._device.note("upload")
        output = func(*args, **kwargs)
        self._device.memory.add(output.untyped_storage())
        return output

    def _count(self, func: Any, inputs: Sequence[Tensor], output: Any) -> None:
        if func.is_view or func.overloadpacket in NO_KERNELS:
            self._device.counts.views += 1
        else:
            self._device.counts.operations += 1
        known = {tensor.untyped_storage()._cdata for tensor in inputs if tensor.is_meta}
        for tensor in _list_leaves([output]):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                storage = tensor.untyped_storage()
                if storage._cdata not in known:  # others are views, of weights for example
                    self._device.memory.add(storage)


def _is_meta(value: object) -> bool:
    return value.is_meta if isinstance(value, Tensor) else isinstance(value, torch.device) and value == META


def _list_leaves(values: Iterable[object]) -> list[object]:
    """Return arguments or outputs, those in lists and tuples too."""
    leaves: list[object] = []
    for value in values:
        if isinstance(value, list | tuple):
            leaves += _list_leaves(value)
        else:
            leaves.append(value)
    return leaves


def _target(kwargs: dict[str, Any]) -> set[bool]:
    """Return whether a copy is to be a meta tensor, if its arguments say so."""
    device = kwargs.get("device")
    return set() if device is None else {device == META}


def _attend(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> Tensor:
    """Return an output whose heads follow the positions in memory, as those of fused kernels do."""
    shape = *query.shape[:-3], query.shape[-2], query.shape[-3], value.shape[-1]
    return torch.empty(shape, dtype=query.dtype, device=META).transpose(-3, -2)


def _normalize(x: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    """Return the outputs of a normalization; those for training, which are small, without their size."""
    nothing = torch.empty(0, device=META)
    return torch.empty_like(x), nothing, nothing


SHAPES: dict[Any, Callable[..., Any]] = {
    ATTENTION: _attend,
    aten.native_group_norm: _normalize,
    aten.native_layer_norm: _normalize,
}
"""What makes the outputs of operations in place of torch: of attention, and of what takes torch a millisecond."""


def _check(func: Any, tensors: Iterable[Tensor], device: DryDevice) -> None:
    """Raise the errors of a GPU; indices may be on the host, from where they are copied."""
    tensors, packet = list(tensors), func.overloadpacket
    elsewhere = [tensor for tensor in tensors if not tensor.is_meta and tensor.ndim]
    if elsewhere and packet in (aten.index, aten.index_put, aten.index_put_):
        for _ in elsewhere:
            device.note("upload")
    elif elsewhere:
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device")
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    if packet in SAME_DTYPE and len(dtypes) > 1:
        raise RuntimeError(f"{func}: Expected all tensors to have the same dtype, found {dtypes}")


def _find_place() -> str:
    """Return the innermost line of pipelines/ that is running."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(CODE):
            file = Path(frame.f_code.co_filename).relative_to(CODE)
            return f"{file}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"
