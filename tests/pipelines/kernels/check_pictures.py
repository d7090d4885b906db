"""Latents with Triton's kernels against those without. `test_checks.py` says where this runs.

On a GPU for every sampler; the interpreter takes 10 seconds and more for each, and the kernels are the same for all.
"""

from functools import cache

import pytest
import torch
from jobs import make_job
from kernel_checks import DEVICE, INTERPRETED
from launches import record_launches
from unets import shrink_demo

from benchmarks.random_weights import build_random_weights, copy_weights
from pipelines.pipeline import Pipeline
from pipelines.sampling.samplers import SAMPLERS
from pipelines.speed import Speed

TOLERANCE = 1e-5
"""Relative: float32's rounding of a pass is 1e-6, and samplers sum up the estimates of several passes."""


@cache
def build_pipelines():
    """Return a pipeline without kernels and one with them, of the same weights in float32."""
    weights = build_random_weights(shrink_demo(), DEVICE, torch.float32)
    speeds = Speed(channels_last=True), Speed(channels_last=True, kernels=True)
    return [Pipeline(copy_weights(weights, speed)) for speed in speeds]


@pytest.fixture(autouse=True)
def launches(monkeypatch):
    """The names of the kernels that run, on a CPU too where they are interpreted."""
    return record_launches(monkeypatch, lambda device: INTERPRETED or device.type == "cuda", computes="fused")


def draw(pipeline, sampler):
    return pipeline.generate_latents(make_job(64, 64, steps=3, sampler=sampler))[0]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["k_euler"] if INTERPRETED else SAMPLERS)
def test_kernels_change_rounding_alone(sampler, launches):
    plain, fast = build_pipelines()
    expected = draw(plain, sampler)
    assert not launches
    found = draw(fast, sampler)
    assert {"group_norm", "geglu"} == set(launches)
    assert ((found - expected).norm() / expected.norm()).item() <= TOLERANCE
