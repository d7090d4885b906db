"""Every speed option gives every sampler's latents, up to rounding; kernels/check_pictures.py has Triton's kernels."""

from typing import Any, cast

import pytest
import torch
from jobs import make_job
from unets import Tape, shrink_demo

from benchmarks.random_weights import build_random_weights, copy_weights
from pipelines.pipeline import Pipeline
from pipelines.sampling.samplers import SAMPLERS
from pipelines.speed import PLAIN, Speed
from pipelines.unet.graphs import UNetGraphs

TOLERANCE = 1e-5
"""Relative: float32's rounding of a pass is 1e-6, and samplers sum up the estimates of several passes."""


@pytest.fixture(scope="module")
def weights():
    return build_random_weights(shrink_demo(), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def plain(weights):
    return Pipeline(weights)


def draw(pipeline, sampler):
    return pipeline.generate_latents(make_job(64, 64, steps=3, sampler=sampler))[0]


@pytest.fixture(scope="module", params=["channels last", "fused projections", "graphs", "all"])
def fast(request, weights):
    layouts = {
        "channels last": Speed(channels_last=True),
        "fused projections": Speed(fused_projections=True),
        "all": Speed(channels_last=True, fused_projections=True),
    }
    copy = copy_weights(weights, layouts.get(request.param, PLAIN))
    if request.param not in ("graphs", "all"):
        return Pipeline(copy), None
    tape, unet = Tape(), cast("Any", copy.unet)
    unet._graphs = UNetGraphs(unet._run, tape.capture)
    return Pipeline(copy), tape


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_options_change_rounding_alone(plain, fast, sampler):
    pipeline, tape = fast
    before = 0 if tape is None else tape.replays
    expected, found = draw(plain, sampler), draw(pipeline, sampler)
    difference = ((found - expected).norm() / expected.norm()).item()
    assert difference <= TOLERANCE
    assert tape is None or tape.replays >= before + 3
