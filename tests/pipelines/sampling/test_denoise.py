"""The layer between sampler and network, with a network that is a formula."""

import math
from dataclasses import replace

import pytest
import torch
from analytic import run_denoise, velocity_network

from pipelines.job import Guidance, Job, Prompts
from pipelines.plan import make_plan
from pipelines.sampling.denoise import Estimator, denoise
from pipelines.sampling.noise import make_image_noise
from pipelines.sampling.prediction import PREDICTIONS, scaled_linear
from pipelines.sampling.samplers import SAMPLERS
from pipelines.text.encoding import Conditioning, PromptEmbeddings

ZSNR = scaled_linear(zsnr=True)
SPREAD, MEAN = 0.8, 0.25
SHAPE = (4, 8, 8)
JOB = Job(
    "m", Prompts("a", "b"), 64, 64, 2, "k_euler", "native", Guidance(scale=1.0), seeds=(5,)
)  # fmt: skip


def said(value):
    return Conditioning(torch.full((77, 3), float(value)), None)


TEXTS = PromptEmbeddings(said(1), said(-1), said(0))


def ideal(x, sigma):
    """The estimate for data drawn from N(MEAN, SPREAD^2); the mean alone at infinite noise."""
    if math.isinf(sigma):
        return torch.full_like(x, MEAN)
    return (x * SPREAD**2 + MEAN * sigma**2) / (SPREAD**2 + sigma**2)


def run(job, network=None, table=ZSNR, prediction="v"):
    """Drive one image; its latents, its noise and every tuple of rows that was asked for."""
    plan = make_plan(job, table)
    noise = make_image_noise(job.seeds[0], SHAPE, plan.sampler, plan.sigmas, table, plan.brownian)
    start = noise.initial if math.isinf(plan.sigmas[0]) else noise.initial * plan.sigmas[0]
    estimator = Estimator(plan, TEXTS, None, PREDICTIONS[prediction])
    network = network or velocity_network(lambda row: ideal(row.x, row.sigma))
    latents, asked = run_denoise(denoise(estimator, start.double(), noise), network)
    return latents, noise, asked


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_from_infinite_noise_is_the_first_estimate(name):
    latents, _, asked = run(replace(JOB, sampler=name, steps=1))
    assert [row.sigma for (row,) in asked] == [math.inf]
    torch.testing.assert_close(latents, torch.full(SHAPE, MEAN, dtype=torch.float64))


@pytest.mark.parametrize("schedule", ["native", "karras", "exponential", "polyexponential"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_two_steps_from_infinite_noise_equal_the_closed_form(name, schedule):
    latents, noise, asked = run(replace(JOB, sampler=name, schedule=schedule))
    sigma = make_plan(replace(JOB, sampler=name, schedule=schedule), ZSNR).sigmas[1]
    unit = noise.renewal if SAMPLERS[name].eta else noise.initial
    assert unit is not None
    x = MEAN + sigma * unit.double()
    torch.testing.assert_close(asked[1][0].x, x)
    torch.testing.assert_close(latents, ideal(x, sigma))
    assert [rows[0].sigma for rows in asked] == [math.inf, sigma]


@pytest.mark.parametrize("name", SAMPLERS)
def test_many_steps_from_infinite_noise_end_inside_the_data(name):
    latents, _, asked = run(replace(JOB, sampler=name, steps=20, schedule="karras"))
    assert float(latents.mean()) == pytest.approx(MEAN, abs=0.3)  # 256 draws: standard error 0.05
    assert 0.5 * SPREAD < float(latents.std()) < 1.5 * SPREAD
    assert sum(math.isinf(rows[0].sigma) for rows in asked) == 1


@pytest.mark.parametrize("name", ["k_euler", "k_heun", "k_dpmpp_2m", "k_lms", "plms"])
def test_after_the_first_step_the_samplers_history_is_empty(name):
    """What the network says at infinite noise reaches the run through the start at the second rung alone."""
    job = replace(JOB, sampler=name, steps=6)
    latents, noise, _ = run(job)
    sigmas = make_plan(job, ZSNR).sigmas[1:]
    x = MEAN + sigmas[0] * noise.initial.double()
    sampling = SAMPLERS[name](x, sigmas, noise.step)
    try:
        question = next(sampling)
        while True:
            question = sampling.send(ideal(*question))
    except StopIteration as finished:
        torch.testing.assert_close(latents, finished.value)


def test_an_ordinary_model_starts_at_its_highest_sigma_without_a_special_step():
    table = scaled_linear()
    network = lambda row: (row.x - ideal(row.x, row.sigma)) / row.sigma  # noqa: E731
    latents, noise, asked = run(replace(JOB, steps=1), network, table, "eps")
    assert asked[0][0].sigma == table.sigma_max
    torch.testing.assert_close(latents, ideal(noise.initial.double() * table.sigma_max, table.sigma_max))


def contexts(rows):
    return [float(row.context[0, 0]) for row in rows]


def test_rows_are_the_prompt_and_its_negative():
    _, _, asked = run(replace(JOB, guidance=Guidance(scale=5.0)))
    assert [contexts(rows) for rows in asked] == [[1, -1], [1, -1]]


def test_a_weakened_negative_asks_for_the_empty_prompt_too_and_none_puts_it_in_its_place():
    assert contexts(run(replace(JOB, guidance=Guidance(uncond_scale=0.5)))[2][0]) == [1, -1, 0]
    assert contexts(run(replace(JOB, guidance=Guidance(uncond_scale=1e-5)))[2][0]) == [1, 0]


def test_the_negative_is_not_asked_for_outside_its_window():
    guidance = Guidance(scale=5.0, skip_above=19.0, skip_below=1.0)
    _, _, asked = run(replace(JOB, steps=28, guidance=guidance))
    for rows in asked:
        assert len(rows) == (2 if 1.0 <= rows[0].sigma <= 19.0 else 1)
    assert len(asked[0]) == 1  # infinite noise is above any threshold


def test_the_windows_edges_belong_to_it():
    sigma = make_plan(replace(JOB, steps=28), ZSNR).sigmas[5]
    _, _, asked = run(replace(JOB, steps=28, guidance=Guidance(skip_above=sigma, skip_below=sigma)))
    assert [rows[0].sigma for rows in asked if len(rows) == 2] == [sigma]


def test_ddim_and_plms_walk_the_tables_entries_whatever_schedule_is_asked_for():
    for name in ("ddim_v3", "plms"):
        plans = [
            make_plan(replace(JOB, sampler=name, steps=28, schedule=s), ZSNR) for s in ("native", "karras")
        ]
        assert plans[0].sigmas == plans[1].sigmas
        assert set(plans[0].sigmas[:-1]) <= set(ZSNR.sigmas)


def test_brownian_noise_is_for_samplers_that_use_noise():
    assert make_plan(replace(JOB, sampler="k_dpmpp_sde"), ZSNR).brownian
    assert make_plan(replace(JOB, sampler="k_euler_ancestral", brownian=True), ZSNR).brownian
    assert not make_plan(replace(JOB, sampler="k_euler_ancestral"), ZSNR).brownian
    assert not make_plan(replace(JOB, brownian=True), ZSNR).brownian
