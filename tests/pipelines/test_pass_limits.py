"""What a pass takes of memory, measured on networks without weights, and the limits that follow from it."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.dispatch import DryDevice
from pipelines.pass_limits import PassLimits, count_decoder_bytes, count_row_bytes, find_pass_limits
from pipelines.sampling.batching import MEGAPIXEL
from pipelines.unet.attention import Context
from pipelines.weights.architecture import sdxl
from pipelines.weights.networks import build_networks

SIDE = 64


@pytest.fixture(scope="module")
def networks() -> Any:
    return build_networks(sdxl())[:2]


@pytest.fixture
def sdxl_weights(demo):
    return replace(demo.weights, architecture=sdxl(), dtype=torch.float16)


def make(*shape, dtype=torch.float16):
    return torch.empty(*shape, device="meta", dtype=dtype)


@torch.inference_mode()
def test_a_pass_of_the_unet_takes_what_is_counted(networks, sdxl_weights):
    (unet, _), rows = networks, 2
    unet.module.half()
    context = Context(make(rows, 77, unet.module.width))
    with DryDevice() as device:
        unet(make(rows, 4, SIDE, SIDE), make(rows, unet.module.shape.embedding), context)
    found = device.memory.peak / (rows * SIDE**2)
    assert found == pytest.approx(count_row_bytes(sdxl(), torch.float16), rel=0.05)


@torch.inference_mode()
def test_decoding_takes_what_is_counted(networks, sdxl_weights):
    with DryDevice() as device:
        networks[1].decode(make(1, 4, SIDE, SIDE, dtype=torch.float32))
    assert device.memory.peak / SIDE**2 == pytest.approx(count_decoder_bytes(sdxl(), torch.float32), rel=0.05)


@pytest.mark.parametrize(
    ("gigabytes", "rows", "images"), [(None, 8, 1), (2, 6.4, 0.33), (10, 8, 1.5), (100, 8, 15.2)]
)
def test_the_limits_follow_from_the_free_memory(gigabytes, rows, images, sdxl_weights, monkeypatch):
    free = None if gigabytes is None else gigabytes << 30
    monkeypatch.setattr("pipelines.pass_limits.find_free_memory", lambda device: free)
    limits = find_pass_limits(sdxl_weights)
    found = limits.unet / MEGAPIXEL, limits.vae / MEGAPIXEL
    assert found == (pytest.approx(rows, rel=0.1), pytest.approx(images, rel=0.15))
    assert find_pass_limits(sdxl_weights, max_rows=3) == PassLimits(3 * MEGAPIXEL, limits.vae)
