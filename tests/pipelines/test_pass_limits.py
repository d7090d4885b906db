"""What a pass takes of memory, measured on networks without weights, and the limits that follow from it."""

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipelines.pass_limits import PassLimits, count_decoder_bytes, count_row_bytes, find_pass_limits
from pipelines.sampling.batching import MEGAPIXEL
from pipelines.unet.attention import Context
from pipelines.weights.architecture import sdxl
from pipelines.weights.networks import build_networks

SIDE = 64


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations have made and that still exist, and the most there were."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return output

    def add(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self.free, key, size)

    def free(self, key, size):
        self.known.discard(key)
        self.live -= size


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
    keys_values = make(rows, 77, unet.module.width)
    with LiveBytes() as memory:
        memory.add(keys_values.untyped_storage())
        kept = memory.live
        unet(make(rows, 4, SIDE, SIDE), make(rows, unet.module.shape.embedding), Context(keys_values))
    assert (memory.peak - kept) / (rows * SIDE**2) == pytest.approx(
        count_row_bytes(sdxl(), torch.float16), rel=0.05
    )


@torch.inference_mode()
def test_decoding_takes_what_is_counted(networks, sdxl_weights):
    with LiveBytes() as memory:
        networks[1].decode(make(1, 4, SIDE, SIDE, dtype=torch.float32))
    assert memory.peak / SIDE**2 == pytest.approx(count_decoder_bytes(sdxl(), torch.float32), rel=0.05)


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
