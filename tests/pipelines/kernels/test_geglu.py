"""GEGLU with torch's own operations, and when the kernel is chosen."""

from math import erf, sqrt

import pytest
import torch

from pipelines.kernels import geglu as module
from pipelines.kernels import triton_support
from pipelines.kernels.geglu import geglu, is_geglu_fusable


def test_it_is_the_first_half_times_the_gelu_of_the_second():
    a, b = [1.0, -2.0, 0.5], [3.0, -1.0, 0.25]
    expected = [a * b * (1 + erf(b / sqrt(2))) / 2 for a, b in zip(a, b, strict=True)]
    torch.testing.assert_close(geglu(torch.tensor([[a + b]])), torch.tensor([[expected]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_known_dtypes_are_fusable(dtype):
    assert is_geglu_fusable(torch.zeros(2, 3, 8, dtype=dtype))


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 8, dtype=torch.float64),
        torch.zeros(2, 16)[:, :8],
        torch.zeros(8, 2).T,
        torch.zeros(0, 8),
        torch.zeros(2, 0),
        torch.zeros(2, 7),
        torch.zeros(()),
    ],
    ids=["float64", "gaps", "transposed", "no rows", "no columns", "odd", "scalar"],
)
def test_others_are_not(x):
    assert not is_geglu_fusable(x)


@pytest.mark.parametrize(
    ("fused", "has_triton", "x", "expected"),
    [
        (True, True, torch.zeros(2, 8), "fused"),
        (False, True, torch.zeros(2, 8), "eager"),
        (True, False, torch.zeros(2, 8), "eager"),
        (True, True, torch.zeros(8, 2).T, "eager"),
    ],
)
def test_the_kernel_is_chosen_where_it_can_run(monkeypatch, fused, has_triton, x, expected):
    monkeypatch.setattr(triton_support, "has_triton", lambda device: has_triton and device == x.device)
    monkeypatch.setattr(module, "compute_fused_geglu", lambda _: "fused")
    monkeypatch.setattr(module, "compute_eager_geglu", lambda _: "eager")
    assert geglu(x, fused=fused) == expected
