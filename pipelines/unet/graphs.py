"""CUDA graphs of a UNet: its hundreds of kernels are launched as one, which saves what launching them takes on the CPU.

A graph is captured for each shape of the inputs and repeats the kernels of that shape on buffers of its own, which the
inputs are copied into. Weights may change in place between two passes, as LoRAs do; if they move, graphs are dropped.
The first pass of a shape is repeated from its graph too, so that the same request always runs the same kernels.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, NamedTuple, TypeAlias, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from pipelines.adapters.attention import ImageGroup
from pipelines.unet.attention import Context
from pipelines.unet.unet import UNetModel

Captured = TypeVar("Captured")
log = logging.getLogger("naiad")
MOST_GRAPHS = 16
"""Graphs that are kept; the one that was not used for longest is dropped for another shape."""
TOLERANCE = 0.02
"""Relative difference from the output without a graph, above which it is not used; half precision has 0.001."""


class UNetInputs(NamedTuple):
    """The inputs of a pass that a graph can repeat: all but ControlNets' residuals.

    Attributes:
        deep: deep features of an earlier pass, with which only the outermost level is run.
        returns_deep: whether the pass returns its deep features too.
    """

    sample: Tensor
    embedding: Tensor
    context: Context
    halvings: int = 0
    deep: Tensor | None = None
    returns_deep: bool = False

    def list_tensors(self) -> list[Tensor]:
        """Return all tensors, in an order that depends on the structure alone."""
        images = [tensor for group in self.context.images for tensor in _list_group(group)]
        deep = [] if self.deep is None else [self.deep]
        return [self.sample, self.embedding, self.context.keys_values, *images, *deep]

    def make_key(self) -> Hashable:
        """Return a key that is equal for inputs that the same graph serves."""
        structure = tuple(group.rows is None for group in self.context.images)
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in self.list_tensors())
        return structure, shapes, self.halvings, self.deep is None, self.returns_deep

    def replace_tensors(self, tensors: Sequence[Tensor]) -> "UNetInputs":
        """Return the same structure with other tensors."""
        sample, embedding, keys_values, *rest = tensors
        parts = iter(rest)
        groups = tuple(
            ImageGroup(None if group.rows is None else next(parts), next(parts), next(parts))
            for group in self.context.images
        )
        deep = None if self.deep is None else next(parts)
        context = Context(keys_values, groups)
        return UNetInputs(sample, embedding, context, self.halvings, deep, self.returns_deep)


def _list_group(group: ImageGroup) -> list[Tensor]:
    rows = [] if group.rows is None else [group.rows]
    return [*rows, group.keys_values, group.scales]


Outputs: TypeAlias = tuple[Tensor, ...]
"""The prediction, and the deep features if the inputs ask for them."""


def run_pass(unet: UNetModel, inputs: UNetInputs) -> Outputs:
    """Run the pass that the inputs ask for."""
    arguments = inputs.sample, inputs.embedding, inputs.context
    if inputs.deep is not None:
        return (unet.run_shallow(*arguments, inputs.deep),)
    if inputs.returns_deep:
        return unet.run_full(*arguments)
    return (unet(*arguments, inputs.halvings),)


RunUNet: TypeAlias = Callable[[UNetInputs], Outputs]
Capture: TypeAlias = Callable[[Callable[[], Outputs]], tuple[Callable[[], None], Outputs]]
"""Captures what a function does; returns what repeats it, and the tensors that hold its outputs afterwards."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Buffer:
    """A tensor at a fixed address, and the one whose content it has."""

    tensor: Tensor
    source: Tensor

    def fill(self, source: Tensor) -> None:
        """Copy a tensor, unless it was copied last: the keys of prompts are the same object from step to step."""
        if source is not self.source:
            self.tensor.copy_(source)
            self.source = source


@dataclass(frozen=True, slots=True)
class Graph:
    """A captured pass."""

    replay: Callable[[], None]
    outputs: Outputs
    buffers: Sequence[Buffer]

    def run(self, inputs: UNetInputs) -> Outputs:
        """Return the outputs for inputs of the shapes of the buffers."""
        for buffer, tensor in zip(self.buffers, inputs.list_tensors(), strict=True):
            buffer.fill(tensor)
        self.replay()
        return tuple(output.clone() for output in self.outputs)


class UNetGraphs:
    """Runs the passes of a UNet from graphs, and those whose graph fails without one.

    Args:
        capture: `CudaCapture`, or another implementation in tests.
    """

    def __init__(self, run: RunUNet, capture: Capture) -> None:
        self._run, self._capture = run, capture
        self._graphs: OrderedDict[Hashable, Graph | None] = OrderedDict()
        # those of the same shape are shared: prompts have the same at all resolutions of an image
        self._buffers = WeakValueDictionary[Hashable, Buffer]()

    def drop(self) -> None:
        """Forget all graphs, whose memory is freed; to be called before weights move."""
        self._graphs.clear()

    def run(self, inputs: UNetInputs) -> Outputs:
        """Return the UNet's outputs."""
        key = inputs.make_key()
        if key not in self._graphs:
            self._graphs[key] = self._try_to_capture(inputs)
            if len(self._graphs) > MOST_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        graph = self._graphs[key]
        return self._run(inputs) if graph is None else graph.run(inputs)

    def _try_to_capture(self, inputs: UNetInputs) -> Graph | None:
        """Return a graph whose output was compared with that of the pass itself; None if there is none."""
        size = "x".join(str(8 * side) for side in reversed(inputs.sample.shape[-2:]))
        expected = self._run(inputs)  # which also lets libraries allocate what they need before the capture
        try:
            buffers = [self._make_buffer(*each) for each in enumerate(inputs.list_tensors())]
            fixed = inputs.replace_tensors([buffer.tensor for buffer in buffers])
            graph = Graph(*self._capture(lambda: self._run(fixed)), buffers)
            difference = max(map(measure_difference, graph.run(inputs), expected))
        except RuntimeError as error:
            log.warning(
                "no CUDA graph for %s, which runs without one: %s", size, str(error).partition("\n")[0]
            )
            return None
        if not difference <= TOLERANCE:
            log.warning("the CUDA graph for %s differs by %.3g, so it runs without one", size, difference)
            return None
        return graph

    def _make_buffer(self, index: int, tensor: Tensor) -> Buffer:
        key = index, tensor.shape, tensor.dtype
        buffer = self._buffers.get(key)
        if buffer is None:
            buffer = self._buffers[key] = Buffer(tensor.clone(), tensor)
        buffer.fill(tensor)
        return buffer


def measure_difference(output: Tensor, expected: Tensor) -> float:
    """Return the relative difference between an output and the expected one; infinite if either is not finite."""
    difference, size = (output - expected).float().square().sum(), expected.float().square().sum()
    found = float(difference / size.clamp(min=1e-24)) ** 0.5
    return found if isfinite(found) else inf


class CudaCapture:
    """Captures graphs on a GPU. They share their memory, since one runs at a time and its output is copied."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def __call__(self, function: Callable[[], Captured]) -> tuple[Callable[[], None], Captured]:
        with torch.cuda.device(self._device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            # other threads copy previews and noise meanwhile, which is no part of the graph
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                outputs = function()
        return graph.replay, outputs
