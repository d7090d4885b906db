"""Weights that wait in CPU memory and are on the device only while a layer runs, for devices with little memory.

The layers of a network run in the same order in every pass. While one runs, the weights of the next are copied on a
stream of their own, so that on a GPU most of the copies are hidden. The values are the same bits, so pictures are too.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn

Copies: TypeAlias = list[Tensor]


class Copier(Protocol):
    """Copies tensors to a device next to what runs there."""

    def start(self, tensors: Sequence[Tensor]) -> Copies:
        """Begin to copy tensors."""
        ...

    def finish(self, copies: Copies) -> None:
        """Let what runs next on the device wait for copies."""
        ...


class PlainCopier:
    """Copies at once, to any device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self, tensors: Sequence[Tensor]) -> Copies:
        return [tensor.to(self._device) for tensor in tensors]

    def finish(self, copies: Copies) -> None:
        pass


class CudaCopier:
    """Copies page-locked memory to a GPU on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def start(self, tensors: Sequence[Tensor]) -> Copies:
        # memory that is reused for a copy must not be in use any more
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            return [tensor.to(self._device, non_blocking=True) for tensor in tensors]

    def finish(self, copies: Copies) -> None:
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for copy in copies:
            copy.record_stream(current)


def make_copier(device: torch.device) -> Copier:
    """Return what copies to a device."""
    return CudaCopier(device) if device.type == "cuda" else PlainCopier(device)


@dataclass(slots=True)
class Layer:
    """A part of a network whose weights wait in CPU memory.

    Attributes:
        home: their tensors there, which the parameters have between two runs.
        copies: those on the device; None while there are none.
        next: the layer that ran after it the last time.
    """

    parameters: list[nn.Parameter]
    home: list[Tensor]
    copies: Copies | None = None
    next: "Layer | None" = field(default=None, repr=False)


class Offload:
    """Layers of networks whose weights wait in CPU memory."""

    def __init__(self, copier: Copier) -> None:
        self._copier = copier
        self._layers: list[Layer] = []
        self._parameters: set[int] = set()
        self._last: Layer | None = None

    @property
    def device_size(self) -> int:
        """Bytes of the weights that are on the device now."""
        return sum(copy.nbytes for layer in self._layers for copy in layer.copies or ())

    @property
    def size(self) -> int:
        """Bytes of the weights that wait in CPU memory."""
        return sum(tensor.nbytes for layer in self._layers for tensor in layer.home)

    def add(self, module: nn.Module, inner: Iterable[nn.Module] = ()) -> None:
        """Keep a module's weights in CPU memory, where they must be now, except while it runs.

        Args:
            inner: modules in it that are layers of their own.
        """
        apart = {id(parameter) for each in inner for parameter in each.parameters()}
        parameters = [parameter for parameter in module.parameters() if id(parameter) not in apart]
        layer = Layer(parameters, [_lock_pages(parameter.data) for parameter in parameters])
        _assign(layer, layer.home)
        self._layers.append(layer)
        self._parameters.update(map(id, parameters))

        def enter(*_: object) -> None:
            self._enter(layer)

        def leave(*_: object) -> None:
            self._leave(layer)

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave, always_call=True)

    def is_home(self, parameter: Tensor) -> bool:
        """Return whether a parameter waits in CPU memory."""
        return id(parameter) in self._parameters

    def clear(self) -> None:
        """Free what is on the device; to be called before weights change, as one layer may be copied ahead."""
        for layer in self._layers:
            self._leave(layer)

    def _enter(self, layer: Layer) -> None:
        copies = self._start(layer)
        self._copier.finish(copies)
        _assign(layer, copies)
        if self._last is not None:
            self._last.next = layer
        self._last = layer
        if layer.next is not None and layer.next is not layer:
            self._start(layer.next)

    def _start(self, layer: Layer) -> Copies:
        if layer.copies is None:
            layer.copies = self._copier.start(layer.home)
        return layer.copies

    def _leave(self, layer: Layer) -> None:
        _assign(layer, layer.home)
        layer.copies = None


def _assign(layer: Layer, tensors: Sequence[Tensor]) -> None:
    for parameter, tensor in zip(layer.parameters, tensors, strict=True):
        parameter.data = tensor


def _lock_pages(tensor: Tensor) -> Tensor:
    """Return a tensor in CPU memory that a GPU can copy from by itself, if there is a GPU."""
    return tensor.cpu().pin_memory() if torch.cuda.is_available() else tensor.cpu()


def offload_all(offload: Offload, module: nn.Module) -> None:
    """Keep all weights of a network in CPU memory, layer by layer.

    Layers are the members of lists, as transformers have them, and the other modules with weights of their own.
    """
    listed = [part for each in module.modules() if isinstance(each, nn.ModuleList) for part in each]
    inside = {id(part) for each in listed for part in each.modules()}
    for part in listed:
        offload.add(part)
    for part in module.modules():
        if id(part) not in inside and next(part.parameters(recurse=False), None) is not None:
            offload.add(part)


def move_weights(module: nn.Module, device: torch.device, offload: Offload) -> None:
    """Move a module's weights to a device, except those that wait in CPU memory."""

    def move(tensor: Tensor) -> Tensor:
        return tensor if offload.is_home(tensor) else tensor.to(device)

    cast("Any", module)._apply(move)
