"""GEGLU, the activation between the two linear layers of SDXL's transformer blocks (Shazeer 2020, arXiv:2002.05202)."""

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.kernels.launch import run_launch
from pipelines.kernels.triton_support import can_launch

FUSED_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def geglu(x: Tensor, *, fused: bool = True) -> Tensor:
    """Return a * gelu(b) of shape (..., n) for x (..., 2n), whose halves are a and b. GELU is the exact one, with erf.

    With `fused`, GPUs with Triton read x once and round once; there the result has no gradient. Which of the two is
    used depends on the device, dtype and layout of x alone; code that torch compiles has torch's own.
    """
    if fused and can_launch(x.device) and is_geglu_fusable(x):
        return compute_fused_geglu(x)
    return compute_eager_geglu(x)


def is_geglu_fusable(x: Tensor) -> bool:
    """Return whether the kernel can read x: contiguous, not empty, of an even number of columns, in a known dtype."""
    return (
        x.dtype in FUSED_DTYPES
        and x.dim() > 0
        and x.numel() > 0
        and x.shape[-1] % 2 == 0
        and x.is_contiguous()
    )


def compute_eager_geglu(x: Tensor) -> Tensor:
    """Return the GEGLU of x (..., 2n) with torch's own operations, which round to the dtype of x twice."""
    a, b = x.chunk(2, -1)
    return a * functional.gelu(b)


def compute_fused_geglu(x: Tensor) -> Tensor:
    """Return the GEGLU of x (..., 2n), which is fusable, with Triton's kernel."""
    from pipelines.kernels.geglu_kernel import plan_geglu

    output = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
    run_launch(plan_geglu(x, output), x.device)
    return output
