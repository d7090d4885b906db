"""Functions that torch compiles for some shapes before they are needed. Others run as they are, so no image waits.

What was compiled may be used as long as the weights have the dtype and the device that they had; torch checks that. If
they do not, a shape is not compiled again, but runs uncompiled from then on.
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from time import perf_counter
from types import FunctionType
from typing import Any, TypeAlias, cast
from uuid import uuid4

import torch
from torch import Tensor

from pipelines.errors import abbreviate
from pipelines.kernels.triton_support import START_ERRORS
from pipelines.unet.graphs import measure_difference

log = logging.getLogger("naiad")
TOLERANCE = 0.05
"""Relative difference from the output without compilation, above which it is not used. In bfloat16 both round, but not
in the same places: SDXL's VAE with random weights has 0.011 on a CPU, and 0.011 between bfloat16 and float32."""
RECOMPILES = "recompile"
"""What torch's error contains where it would have to compile again."""
Outputs: TypeAlias = tuple[Tensor, ...]
Function: TypeAlias = Callable[..., Outputs]
"""Takes tensors."""


class CompiledShapes:
    """A network's code for the inputs that it was compiled for.

    Args:
        name: of the network in the log. Its first tensor is (B, channels, h, w), in latents; its third, if it has one,
            (B, tokens, width).
        backend: of `torch.compile`.
    """

    def __init__(self, name: str, backend: "str | Callable[..., Any]" = "inductor") -> None:
        self._name, self._backend = name, backend
        self._compiled: dict[Hashable, Function | None] = {}

    def is_known(self, key: Hashable) -> bool:
        """Return whether inputs with this key were compiled, or could not be."""
        return key in self._compiled

    @torch.inference_mode()
    def compile(self, key: Hashable, function: Function, tensors: Sequence[Tensor]) -> bool:
        """Compile a function for tensors of these shapes, which can take minutes, and return whether that worked.

        It did not if the compiler fails or its output is not that of the function; the log has the reason.

        Args:
            key: is equal for tensors that the same code serves.
        """
        self._compiled[key] = None
        started, shapes = perf_counter(), _describe(tensors)
        log.info("%s is being compiled for %s; that can take minutes", self._name, shapes)
        tensors = [_lay_out(tensor) for tensor in tensors]
        compiled = _compile(function, self._backend)
        try:
            difference = max(map(measure_difference, compiled(*tensors), function(*tensors)))
        except START_ERRORS as error:
            log.warning("%s is not compiled for %s: %s", self._name, shapes, _to_line(error))
            return False
        if not difference <= TOLERANCE:
            log.warning(
                "%s, compiled for %s, differs by %.3g and is not used", self._name, shapes, difference
            )
            return False
        self._compiled[key] = compiled
        log.info("%s is compiled for %s, in %.0f s", self._name, shapes, perf_counter() - started)
        return True

    @torch.inference_mode()
    def run(self, key: Hashable, tensors: Sequence[Tensor]) -> Outputs | None:
        """Return the outputs of what was compiled for a key; None if nothing is."""
        compiled = self._compiled.get(key)
        if compiled is None:
            return None
        try:
            with cast("Any", torch.compiler).set_stance("fail_on_recompile"):
                return compiled(*map(_lay_out, tensors))
        except RuntimeError as error:
            if RECOMPILES not in str(error):
                raise
            shapes = _describe(tensors)
            log.warning("%s runs uncompiled for %s from now on: %s", self._name, shapes, _to_line(error))
            self._compiled[key] = None
            return None


def _compile(function: Function, backend: "str | Callable[..., Any]") -> Function:
    """Return a function that is compiled when it is first called."""

    def run(*tensors: Tensor) -> Outputs:
        return function(*tensors)

    # torch keeps what it compiles by the code of the function, and no more than 8 for equal codes: so no two are equal
    code = run.__code__.replace(co_name=f"run_{uuid4().hex}")
    own = FunctionType(code, run.__globals__, code.co_name, closure=run.__closure__)
    return cast("Any", torch).compile(own, backend=backend, fullgraph=True, dynamic=False)


def _lay_out(tensor: Tensor) -> Tensor:
    """Return a tensor of inference mode with the strides that follow from its shape, as torch checks both."""
    strides = torch.empty(tensor.shape, device="meta").stride()
    if tensor.stride() == strides and tensor.is_inference():
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _describe(tensors: Sequence[Tensor]) -> str:
    height, width = tensors[0].shape[-2:]
    tokens = f" and {tensors[2].shape[1]} tokens" if len(tensors) > 2 else ""
    return f"{8 * width}x{8 * height}{tokens}"


def _to_line(error: Exception) -> str:
    """Return the text of an error, of which torch writes the reason on a line of its own."""
    return abbreviate(" ".join(str(error).split()))
