"""The kernels of group norm against torch's own operations in float64. `test_checks.py` says where this runs."""

from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
import torch
from kernel_checks import DEVICE, DTYPES, INTERPRETED, find_largest_error

from pipelines.kernels import group_norm
from pipelines.kernels.group_norm import (
    compute_eager_group_norm,
    compute_fused_group_norm,
    is_group_norm_fusable,
)
from pipelines.kernels.group_norm_plan import PROGRAMS, TILE, plan_group_norm

EPS = 1e-5
MAX_COST = 8
"""Of a random case, in programs; the interpreter needs some 30 milliseconds for each."""
FULL_SIZE = (
    ()
    if INTERPRETED
    else (
        *((2, 320, 104, 152), (2, 640, 52, 76), (2, 1280, 26, 38), (2, 1920, 26, 38), (2, 2560, 26, 38)),
        *((1, 512, 104, 152), (1, 256, 608, 832), (1, 128, 1216, 832), (4, 960, 104, 152)),
    )
)


@dataclass(frozen=True)
class Case:
    """A tensor's shape and statistics, and what is asked for."""

    shape: tuple[int, int, int, int]
    groups: int
    dtype: torch.dtype
    tile: int = TILE
    programs: int = PROGRAMS
    mean: float = 0
    deviation: float = 1
    silu: bool = True
    has_shift: bool = False

    def plan(self):
        _, channels, height, width = self.shape
        return plan_group_norm(channels, height * width, self.groups, self.tile, self.programs)

    def estimate_cost(self):
        plan = self.plan()
        loops = 2 * plan.positions / plan.block_rows
        return self.shape[0] * plan.chunks * (plan.parts + plan.tiles + loops / 4)


def draw_case(seed):
    draw = Random(seed)
    while True:
        groups = draw.choice((1, 2, 3, 5, 8, 32))
        channels = groups * draw.choice((1, 2, 3, 4, 5, 7, 8, 10, 16, 20, 30, 40, 60, 80))
        tile, width = draw.choice((32, 256, 1024, TILE)), draw.randint(1, 20)
        block_rows = plan_group_norm(channels, 1, groups, tile).block_rows
        height = -(-draw.randint(1, 5 * block_rows) // width)
        case = Case(
            (draw.randint(1, 4), channels, height, width),
            groups,
            DTYPES[seed % 3],
            tile,
            draw.choice((1, 2, 4, PROGRAMS)),
            draw.choice((0, 0, 1, 30, 1000)),
            draw.choice((0.01, 1, 50)),
            draw.random() < 0.5,
            draw.random() < 0.5,
        )
        # the interpreter adds rows one by one, where a GPU adds pairs: the error grows with their number
        if block_rows <= 256 and channels <= 640 and case.estimate_cost() <= MAX_COST:
            return case


def draw_inputs(case, seed=0) -> Any:
    """Return x and what is added to it, weight and bias."""
    generator = torch.Generator().manual_seed(seed)
    images, channels, height, width = case.shape

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    x = case.deviation * (draw(images, height, width, channels) + case.mean)
    shift = case.deviation * draw(images, channels) if case.has_shift else None
    x, shift, weight, bias = (
        None if tensor is None else tensor.to(case.dtype).to(DEVICE)
        for tensor in (x.permute(0, 3, 1, 2), shift, draw(channels), draw(channels))
    )
    return x, shift, weight, bias


def measure_magnitude(x, groups, weight, bias):
    """Return the size of what is rounded on the way: values, weighed as they are, then products and offsets."""
    grouped = x.unflatten(1, (groups, -1)).flatten(2)
    deviation = (grouped.var(-1, unbiased=False) + EPS).sqrt()
    largest = (grouped.abs().amax(-1) / deviation).repeat_interleave(x.shape[1] // groups, 1)
    return (largest * weight.abs() + bias.abs())[:, :, None, None]


def compare(case, seed=0):
    x, shift, weight, bias = draw_inputs(case, seed)
    assert is_group_norm_fusable(x, case.groups)
    result = compute_fused_group_norm(x, case.groups, weight, bias, EPS, case.silu, shift)
    assert result.dtype is case.dtype
    assert result.is_contiguous(memory_format=torch.channels_last)
    x, weight, bias = x.double().contiguous(), weight.double(), bias.double()
    if shift is not None:
        x += shift.double()[:, :, None, None]
    exact = compute_eager_group_norm(x, case.groups, weight, bias, EPS, case.silu)
    assert find_largest_error(result, exact, measure_magnitude(x, case.groups, weight, bias)) <= 1


@pytest.fixture
def use_plan(monkeypatch):
    """Let the kernels run with a case's plan, so that small images have several parts and tiles too."""
    return lambda case: monkeypatch.setattr(group_norm, "plan_group_norm", lambda *_: case.plan())


@pytest.mark.parametrize(
    "seed", [*range(20), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(20, 140))]
)
def test_random_shapes(use_plan, seed):
    case = draw_case(seed)
    use_plan(case)
    compare(case, seed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_channels_of_sdxl(dtype):
    compare(Case((1, 320, 5, 7), 32, dtype, has_shift=True))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [320, 640, 960, 1280, 1920, 2560])
def test_all_channels_of_sdxl(dtype, channels):
    compare(Case((1, channels, 9, 11), 32, dtype, has_shift=True))


@pytest.mark.parametrize("deviation", [0, 1e-6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_constant_image_is_the_bias(dtype, deviation):
    compare(Case((1, 64, 5, 7), 32, dtype, mean=0.5, deviation=deviation))


def test_an_image_does_not_depend_on_the_others(use_plan):
    case = Case((2, 20, 5, 5), 4, torch.float16, tile=256, programs=2, has_shift=True)
    use_plan(case)
    x, shift, weight, bias = draw_inputs(case)
    together = compute_fused_group_norm(x, 4, weight, bias, EPS, True, shift)
    for image in range(2):
        one = slice(image, image + 1)
        alone = compute_fused_group_norm(x[one], 4, weight, bias, EPS, True, shift[one])
        assert torch.equal(together[one], alone)


def test_nan_stays_in_its_group(use_plan):
    case = Case((2, 24, 3, 5), 4, torch.float16, tile=256)
    use_plan(case)
    x, _, weight, bias = draw_inputs(case)
    before = compute_fused_group_norm(x, 4, weight, bias, EPS, True)
    x[1, 8, 2, 3] = float("nan")
    after = compute_fused_group_norm(x, 4, weight, bias, EPS, True)
    assert after[1, 6:12].isnan().all()
    before[1, 6:12] = after[1, 6:12] = 0
    assert torch.equal(before, after)


def test_vectors_may_have_gaps():
    x, shift, weight, bias = draw_inputs(Case((2, 64, 4, 4), 32, torch.float32, has_shift=True))
    expected = compute_fused_group_norm(x, 32, weight, bias, EPS, True, shift)
    spread = torch.stack((shift, shift), -1)[..., 0]
    assert not spread.is_contiguous()
    assert torch.equal(compute_fused_group_norm(x, 32, weight, bias, EPS, True, spread), expected)


def test_vectors_of_another_size_are_refused():
    x, shift, weight, bias = draw_inputs(Case((2, 64, 4, 4), 32, torch.float32, has_shift=True))
    for vectors in ((weight[1:], bias, shift), (weight, bias[1:], shift), (weight, bias, shift[:1])):
        with pytest.raises(RuntimeError, match="invalid for input of size"):
            compute_fused_group_norm(x, 32, *vectors[:2], EPS, True, vectors[2])


@pytest.mark.parametrize("shape", FULL_SIZE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_full_size(shape, dtype):
    compare(Case(shape, 32, dtype, mean=3, has_shift=True))


@pytest.mark.skipif(INTERPRETED, reason="CUDA graphs need a GPU")
def test_a_cuda_graph_captures_the_kernels():
    case = Case((2, 320, 104, 152), 32, torch.float16, has_shift=True)
    x, shift, weight, bias = draw_inputs(case)
    expected = compute_fused_group_norm(x, 32, weight, bias, EPS, True, shift)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = compute_fused_group_norm(x, 32, weight, bias, EPS, True, shift)
    graph.replay()
    assert torch.equal(result, expected)
