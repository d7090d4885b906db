from typing import Any, cast

import pytest
import torch
from jobs import change, make_job, plan_first

from pipelines.cost import count_images, estimate_cost
from pipelines.job import Character, Guidance, PreviousPass, Prompts, RgbImage, UpscaleJob, VibeJob
from pipelines.sampling.prediction import scaled_linear
from pipelines.sampling.samplers import SAMPLERS

JOB = make_job(1000, 1000, steps=10)


def test_the_cost_counts_rows_steps_and_pixels():
    assert estimate_cost(JOB) == 2 * 10 + 2
    assert estimate_cost(change(JOB, guidance=Guidance(1.0))) == 10 + 2
    assert estimate_cost(change(JOB, width=500)) == 11
    assert estimate_cost(change(JOB, sampler="k_heun")) == 2 * 20 + 2
    people = Prompts("a", characters=(Character("b", "", 0.2, 0.5), Character("c", "d", 0.8, 0.5)))
    assert estimate_cost(change(JOB, prompts=people)) == 6 * 10 + 2


def test_a_pass_with_an_init_image_counts_the_steps_that_are_run():
    assert estimate_cost(change(JOB, init=PreviousPass(), strength=0.55)) == 2 * 6 + 2


def test_jobs_without_images_have_a_cost():
    image = RgbImage(8, 8, bytes(192))
    assert estimate_cost(UpscaleJob(image, 1000, 2000)) == 2
    assert estimate_cost(VibeJob("m", image)) == 1
    assert [count_images(work) for work in (change(JOB, seeds=(1, 2)), VibeJob("m", image))] == [2, 1]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_samplers_evaluations_are_counted(name):
    """On a network that predicts zeros."""
    plan = plan_first(make_job(sampler=name, steps=20), scaled_linear(zsnr=False))
    sampler = SAMPLERS[name](
        torch.full((1,), plan.sigmas[0]), plan.sigmas, lambda sigma, target: torch.zeros(1)
    )
    evaluations, x0 = 0, cast(Any, None)
    while True:
        try:
            sampler.send(x0)
        except StopIteration:
            break
        evaluations, x0 = evaluations + 1, torch.zeros(1)
    if name != "k_dpm_adaptive":
        assert evaluations / 20 == pytest.approx(SAMPLERS[name].evaluations, abs=0.1)
