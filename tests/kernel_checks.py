"""What the checks of Triton's kernels share: the device, and how far a result may be from the exact one."""

import os

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
ROUNDING = 2**-24
"""Largest relative error of rounding to float32, in which the kernels compute."""
OPERATIONS = 4 if INTERPRETED else 8
"""Roundings to float32 that a result may be wrong by; a GPU's exponential and division are approximations."""


def find_largest_error(result, exact, magnitude):
    """Return the largest error of a result over what is allowed: rounding to its dtype, and OPERATIONS in float32.

    `exact` is in float64, `magnitude` that of the values that the kernel rounded to float32.
    """
    limits = torch.finfo(result.dtype)
    # half a unit in the last place; the interpreter truncates to bfloat16, and so is wrong by up to one
    rounding = limits.eps if INTERPRETED and result.dtype is torch.bfloat16 else limits.eps / 2
    allowed = rounding * exact.abs() + OPERATIONS * ROUNDING * magnitude + limits.smallest_normal * limits.eps
    assert result.shape == exact.shape
    return ((result.double() - exact).abs() / allowed).max().item()
