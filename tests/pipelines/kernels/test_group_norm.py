"""Group norm with torch's own operations, when the kernels are chosen, and how they divide an image."""

import subprocess
import sys

import pytest
import torch
from paths import ROOT

from pipelines.kernels import group_norm, triton_support
from pipelines.kernels.group_norm import group_norm_silu, is_group_norm_fusable
from pipelines.kernels.group_norm_plan import PROGRAMS, choose_chunk, plan_group_norm


def recompute(x, groups, weight, bias, eps, silu, shift=None):
    """Wu and He, "Group Normalization", 2018, equations 1 to 3."""
    if shift is not None:
        x = x + shift[..., None, None]
    images, channels = x.shape[:2]
    grouped = x.reshape(images, groups, -1)
    mean = grouped.mean(-1, keepdim=True)
    variance = ((grouped - mean) ** 2).mean(-1, keepdim=True)
    y = ((grouped - mean) / torch.sqrt(variance + eps)).reshape(x.shape)
    y = y * weight.view(1, channels, 1, 1) + bias.view(1, channels, 1, 1)
    return y * torch.sigmoid(y) if silu else y


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("has_shift", [True, False])
def test_it_is_the_papers_formula(silu, has_shift):
    generator = torch.Generator().manual_seed(0)
    x = 3 + torch.randn(2, 12, 5, 7, generator=generator)
    weight, bias, shift = (torch.randn(*shape, generator=generator) for shape in ((12,), (12,), (2, 12)))
    arguments = (x, 4, weight, bias, 0.01, silu, shift if has_shift else None)
    torch.testing.assert_close(group_norm_silu(*arguments), recompute(*arguments))


def channels_last(*shape, dtype=torch.float16):
    return torch.zeros(shape, dtype=dtype).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_channels_last_tensors_are_fusable(dtype):
    assert is_group_norm_fusable(channels_last(2, 64, 3, 5, dtype=dtype), 32)


@pytest.mark.parametrize(
    ("x", "groups"),
    [
        (channels_last(2, 64, 3, 5, dtype=torch.float64), 32),
        (torch.zeros(2, 64, 3, 5), 32),
        (channels_last(2, 64, 3, 6)[:, :, :, ::2], 32),
        (torch.zeros(2, 64, 3), 32),
        (channels_last(0, 64, 3, 5), 32),
        (channels_last(2, 64, 0, 5), 32),
        (channels_last(2, 64, 3, 5), 24),
        (channels_last(2, 64, 3, 5), 0),
        (channels_last(1, 4097, 1, 1), 1),
        (torch.zeros(1, 4, 1, 1).expand(65536, 4, 1, 1).contiguous(), 2),
    ],
    ids=[
        *("float64", "channels first", "gaps", "3 dimensions", "no images", "no rows"),
        *("no divisor", "no groups", "large groups", "many images"),
    ],
)
def test_others_are_not(x, groups):
    assert not is_group_norm_fusable(x, groups)


@pytest.mark.parametrize(
    ("fused", "has_triton", "x", "expected"),
    [
        (True, True, channels_last(2, 64, 3, 5), "fused"),
        (False, True, channels_last(2, 64, 3, 5), "eager"),
        (True, False, channels_last(2, 64, 3, 5), "eager"),
        (True, True, torch.zeros(2, 64, 3, 5), "eager"),
    ],
)
def test_the_kernels_are_chosen_where_they_can_run(monkeypatch, fused, has_triton, x, expected):
    monkeypatch.setattr(triton_support, "has_triton", lambda device: has_triton and device == x.device)
    monkeypatch.setattr(group_norm, "compute_fused_group_norm", lambda *_: "fused")
    monkeypatch.setattr(group_norm, "compute_eager_group_norm", lambda *_: "eager")
    vector = torch.ones(64)
    assert group_norm_silu(x, 32, vector, vector, 1e-5, True, fused=fused) == expected


SIZES = [
    (channels, height * width, groups)
    for channels, groups in (
        (32, 32),
        (320, 32),
        (640, 32),
        (2560, 32),
        (128, 32),
        (60, 3),
        (4096, 1),
        (7, 7),
    )
    for height, width in ((1, 1), (5, 13), (26, 38), (104, 152), (1216, 832), (2048, 1536))
]


@pytest.mark.parametrize(("channels", "positions", "groups"), SIZES)
def test_a_plan_covers_an_image_once(channels, positions, groups):
    plan = plan_group_norm(channels, positions, groups)
    size = channels // groups
    assert (plan.chunks - 1) * plan.chunk_groups < groups <= plan.chunks * plan.chunk_groups
    assert plan.chunk_groups * size <= plan.block_channels
    assert plan.chunk_groups <= plan.block_groups
    assert (plan.parts - 1) * plan.part_rows < positions <= plan.parts * plan.part_rows
    assert (plan.tiles - 1) * plan.tile_rows < positions <= plan.tiles * plan.tile_rows
    assert plan.parts <= plan.block_parts
    assert plan.chunks * plan.parts <= max(PROGRAMS, plan.chunks)


@pytest.mark.parametrize(("channels", "positions", "groups"), SIZES)
def test_a_block_is_of_powers_of_2_and_fits_the_registers(channels, positions, groups):
    plan = plan_group_norm(channels, positions, groups)
    blocks = (plan.block_rows, plan.block_channels, plan.block_groups, plan.block_parts)
    assert all(number.bit_count() == 1 for number in blocks)
    assert plan.block_rows * plan.block_channels <= 4096
    assert plan.block_groups * plan.block_parts <= 8192
    assert plan.block_groups * plan.block_channels <= 8192


@pytest.mark.parametrize("channels", [320, 640, 960, 1280, 1920, 2560, 128, 256, 512])
def test_chunks_of_sdxl_are_aligned_and_wide(channels):
    size = channels // 32
    count = choose_chunk(size, 32)
    plan = plan_group_norm(channels, 15808, 32)
    assert count * size % 8 == 0
    assert count * size >= 64
    assert channels / (plan.chunks * plan.block_channels) > 0.8


@pytest.mark.parametrize(
    ("images", "channels", "positions"), [(2, 320, 104 * 152), (2, 640, 52 * 76), (1, 128, 1216 * 832)]
)
def test_large_images_give_each_multiprocessor_of_an_h200_a_program(images, channels, positions):
    plan = plan_group_norm(channels, positions, 32)
    assert images * plan.chunks * plan.parts >= 132
    assert images * plan.chunks * plan.tiles >= 2 * 132


def test_the_package_is_imported_without_triton():
    code = "import sys; sys.modules['triton'] = None; import pipelines.kernels.group_norm, pipelines.kernels.geglu"
    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd=ROOT, timeout=120)
