"""The kernel of GEGLU against torch's own operations in float64. `test_checks.py` says where this runs."""

from random import Random

import pytest
import torch
from kernel_checks import DEVICE, DTYPES, INTERPRETED, find_largest_error

from pipelines.kernels.geglu import compute_eager_geglu, compute_fused_geglu, is_geglu_fusable

FULL_SIZE = () if INTERPRETED else ((2, 3952, 5120), (2, 988, 10240), (8, 3952, 5120))


def draw_shape(seed):
    draw = Random(seed)
    columns = draw.choice((1, 2, 3, 10, 64, 100, 320, 511, 512, 513, 700, 1280))
    return *(draw.randint(1, 3) for _ in range(draw.randint(0, 3))), 2 * columns


def compare(x):
    assert is_geglu_fusable(x)
    result = compute_fused_geglu(x)
    a, b = x.double().chunk(2, -1)
    assert result.dtype is x.dtype
    assert result.is_contiguous()
    assert find_largest_error(result, compute_eager_geglu(x.double()), (a * b).abs()) <= 1


def draw(shape, dtype, scale, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator)).to(dtype).to(DEVICE)


@pytest.mark.parametrize(
    "seed", [*range(15), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(15, 60))]
)
def test_random_shapes(seed):
    compare(draw(draw_shape(seed), DTYPES[seed % 3], (0.1, 1, 8, 30)[seed % 4], seed))


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_magnitudes_of_the_gate(dtype):
    gate = torch.cat((torch.linspace(-12, 12, 999), torch.tensor([0.0, -0.0, 1e-6, -1e-6, 200, -200])))
    compare(torch.cat((torch.full_like(gate, 3), gate)).to(dtype).to(DEVICE))


def test_infinity_and_nan_are_those_of_torch():
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[1, -2, 0, nan, 1, 1], [inf, inf, 5, 1, nan, -3]]).T.flatten().view(6, 2).to(DEVICE)
    result = compute_fused_geglu(x)
    torch.testing.assert_close(result, compute_eager_geglu(x), equal_nan=True)
    assert result[:2].flatten().tolist() == [inf, -inf]


@pytest.mark.parametrize("shape", FULL_SIZE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_full_size(shape, dtype):
    compare(draw(shape, dtype, 1))
