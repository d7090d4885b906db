"""A decoder that torch compiles for some sizes before they are needed. Others run without, so that no image waits.

What was compiled may be used as long as the weights have the dtype and the device that they had; torch checks that. If
they do not, a size is not compiled again, but runs without from then on.
"""

import logging
from collections.abc import Callable, Hashable
from time import perf_counter
from types import FunctionType
from typing import Any, TypeAlias, cast

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
Decode: TypeAlias = Callable[[Tensor], Tensor]


class CompiledDecoder:
    """Decodes latents of the sizes that it was compiled for with compiled code, and others without.

    Args:
        decode: decodes latents (B, 4, h, w).
        backend: of `torch.compile`.
    """

    def __init__(self, decode: Decode, backend: "str | Callable[..., Any]" = "inductor") -> None:
        self._decode, self._backend = decode, backend
        self._compiled: dict[Hashable, Decode] = {}

    @torch.inference_mode()
    def compile(self, latents: Tensor) -> bool:
        """Compile for the shape and dtype of latents, which can take minutes, and return whether that worked.

        It did not if the compiler fails or its output is not that of the decoder; the log has the reason.
        """
        size, started = _format_size(latents), perf_counter()
        latents, compiled = _copy(latents), _compile(self._decode, size, self._backend)
        try:
            difference = measure_difference(compiled(latents), self._decode(latents))
        except START_ERRORS as error:
            log.warning("the VAE's decoder is not compiled for %s: %s", size, _to_line(error))
            return False
        if not difference <= TOLERANCE:
            log.warning("the VAE's compiled decoder for %s differs by %.3g and is not used", size, difference)
            return False
        self._compiled[_make_key(latents)] = compiled
        log.info("the VAE's decoder is compiled for %s, in %.0f s", size, perf_counter() - started)
        return True

    @torch.inference_mode()
    def run(self, latents: Tensor) -> Tensor:
        """Decode latents (B, 4, h, w)."""
        key = _make_key(latents)
        compiled = self._compiled.get(key)
        if compiled is None:
            return self._decode(latents)
        try:
            with cast("Any", torch.compiler).set_stance("fail_on_recompile"):
                return compiled(_copy(latents))
        except RuntimeError as error:
            if RECOMPILES not in str(error):
                raise
            size = _format_size(latents)
            log.warning("the VAE's compiled decoder for %s is dropped: %s", size, _to_line(error))
            del self._compiled[key]
            return self._decode(latents)


def _compile(decode: Decode, size: str, backend: "str | Callable[..., Any]") -> Decode:
    """Return a function that is compiled when it is first called."""

    def run(latents: Tensor) -> Tensor:
        return decode(latents)

    # torch keeps what it compiles with the code of the function, and no more than 8 of each: so each has its own
    code = run.__code__.replace(co_name=f"decode_{size}")
    own = FunctionType(code, run.__globals__, code.co_name, closure=run.__closure__)
    return cast("Any", torch).compile(own, backend=backend, fullgraph=True, dynamic=False)


def _copy(latents: Tensor) -> Tensor:
    """Return a copy whose strides follow from its shape, as torch checks them too."""
    return latents.clone(memory_format=torch.contiguous_format)


def _make_key(latents: Tensor) -> Hashable:
    return latents.shape, latents.dtype, latents.device


def _format_size(latents: Tensor) -> str:
    height, width = latents.shape[-2:]
    return f"{8 * width}x{8 * height}"


def _to_line(error: Exception) -> str:
    """Return the text of an error, of which torch writes the reason on a line of its own."""
    return abbreviate(" ".join(str(error).split()))
