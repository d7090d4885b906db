"""Second passes and enlargements, around a pipeline that only notes what it is asked for."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.errors import Cancelled
from pipelines.job import Enhance, Guidance, Job, Prompts, RgbImage, UpscaleJob
from pipelines.runner import Runner
from pipelines.types import Progress

ENHANCE = Enhance(96, 160, 0.5, 0.1, seed=2**32 - 1, noise_seed=30)
JOB = Job(
    "m", Prompts("a"), 64, 96, 4, "k_euler", "native", Guidance(), seeds=(5, 6), enhance=ENHANCE
)  # fmt: skip


class Noting:
    """Draws a flat picture, a shade lighter each time."""

    def __init__(self):
        self.jobs = []

    def run(self, job, watch):
        self.jobs.append(job)
        for image in range(len(job.seeds)):
            watch(Progress(image, 1, job.steps, 1.0))
        shade = 10 * len(self.jobs)
        return [np.full((job.height, job.width, 3), shade + k, np.uint8) for k in range(len(job.seeds))]

    def ladder(self, job):
        return (math.inf, 0.0) if job.source is None else (1.0, 0.0)


class Doubling:
    """An upscaler that doubles by repeating, and marks what it made."""

    scale = 2

    def upscale(self, pixels, before_tile):
        before_tile(0, 1)
        return (pixels.repeat(2, 0).repeat(2, 1) + 100).astype(np.uint8)


@pytest.fixture
def pipeline() -> Any:
    return Noting()


@pytest.fixture
def doubling() -> Any:
    return Doubling()


def test_each_picture_is_enlarged_and_drawn_on_from_with_its_own_seeds(pipeline):
    seen = []
    drawn = Runner(pipeline).run(JOB, seen.append)
    first, *seconds = pipeline.jobs
    assert first is JOB
    assert [picture.shape for picture in drawn] == [(160, 96, 3)] * 2
    assert [second.seeds for second in seconds] == [(2**32 - 1,), (0,)]
    assert [second.source.noise_seed for second in seconds] == [30, 31]
    assert [second.source.picture.rgb[0] for second in seconds] == [10, 11]
    assert [progress.image for progress in seen] == [0, 1, 0, 1]


def test_a_network_enlarges_where_it_is_asked_for(pipeline, doubling):
    studio = Runner(pipeline, doubling)
    studio.run(JOB, lambda _: None)
    assert pipeline.jobs[1].source.picture.rgb[0] == 10
    studio.run(replace(JOB, enhance=replace(ENHANCE, network=True)), lambda _: None)
    assert pipeline.jobs[4].source.picture.rgb[0] == 40 + 100


@pytest.mark.parametrize(("network", "shade"), [(False, 50), (True, 150)])
def test_an_enlargement_is_made_by_what_is_loaded(pipeline, doubling, network, shade):
    studio = Runner(pipeline, doubling if network else None)
    work = UpscaleJob(RgbImage(8, 4, bytes([50]) * 96), 12, 6)
    (enlarged,) = studio.run(work)
    assert enlarged.shape == (6, 12, 3)
    assert (enlarged == shade).all()
    assert studio.ladder(work) == ()
    assert pipeline.jobs == []


def test_an_enlargement_can_be_called_off(pipeline, doubling):
    def called_off(progress):
        raise Cancelled(f"{progress.step} of {progress.steps}")

    work = UpscaleJob(RgbImage(8, 4, bytes([50]) * 96), 12, 6)
    with pytest.raises(Cancelled, match="1 of 1"):
        Runner(pipeline, doubling).run(work, called_off)


def test_the_ladder_told_is_the_last_pass_s(pipeline):
    assert Runner(pipeline).ladder(JOB) == (1.0, 0.0)


def test_the_demo_model_enhances(demo):
    job = replace(JOB, width=64, height=64, seeds=(5,), enhance=replace(ENHANCE, width=96, height=96))
    with torch.inference_mode():
        (drawn,) = Runner(demo).run(job)
    assert drawn.shape == (96, 96, 3)
    assert drawn.std() > 1
