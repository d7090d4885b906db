"""`denoise` with a network that is a formula."""

import math

import pytest
import torch
from analytic import run_denoise, velocity_network
from jobs import change, make_job, plan_first

from pipelines.job import Guidance, Prompts, UncondZero
from pipelines.sampling.denoise import Estimator, denoise
from pipelines.sampling.noise import make_image_noise
from pipelines.sampling.prediction import PREDICTIONS, scaled_linear
from pipelines.sampling.samplers import SAMPLERS
from pipelines.text.encoding import Conditioning, PromptEmbeddings

ZSNR = scaled_linear(zsnr=True)
SPREAD, MEAN = 0.8, 0.25
SHAPE = (4, 8, 8)
JOB = make_job(64, 64, Prompts("a", "b"), steps=2, guidance=Guidance(scale=1.0), seeds=(5,))


def conditioning(value):
    return Conditioning(torch.full((77, 3), float(value)), None)


EMBEDDINGS = PromptEmbeddings(conditioning(1), conditioning(-1), conditioning(0))


def ideal_estimate(x, sigma):
    """Return the ideal estimate for data from N(MEAN, SPREAD^2); at infinite noise the mean."""
    if math.isinf(sigma):
        return torch.full_like(x, MEAN)
    return (x * SPREAD**2 + MEAN * sigma**2) / (SPREAD**2 + sigma**2)


def run(job, network=None, table=ZSNR, prediction="v", **options):
    """Run one image; return its latents, its noise and every tuple of rows it requested."""
    plan = plan_first(job, table)
    noise = make_image_noise(job.passes[0].seeds[0], SHAPE, plan.sampler, plan.sigmas, table, plan.brownian)
    start = noise.initial if math.isinf(plan.sigmas[0]) else noise.initial * plan.sigmas[0]
    estimator = Estimator(plan, EMBEDDINGS, None, PREDICTIONS[prediction], **options)
    network = network or velocity_network(lambda row: ideal_estimate(row.x, row.sigma))
    latents, requests = run_denoise(denoise(estimator, start.double(), noise), network)
    return latents, noise, requests


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_from_infinite_noise_returns_the_first_estimate(name):
    latents, _, requests = run(change(JOB, sampler=name, steps=1))
    assert [row.sigma for (row,) in requests] == [math.inf]
    torch.testing.assert_close(latents, torch.full(SHAPE, MEAN, dtype=torch.float64))


@pytest.mark.parametrize("schedule", ["native", "karras", "exponential", "polyexponential", "gits"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_two_steps_from_infinite_noise_equal_the_closed_form(name, schedule):
    latents, noise, requests = run(change(JOB, sampler=name, schedule=schedule))
    sigma = plan_first(change(JOB, sampler=name, schedule=schedule), ZSNR).sigmas[1]
    unit = noise.renewal if SAMPLERS[name].eta else noise.initial
    assert unit is not None
    x = MEAN + sigma * unit.double()
    torch.testing.assert_close(requests[1][0].x, x)
    torch.testing.assert_close(latents, ideal_estimate(x, sigma))
    assert [rows[0].sigma for rows in requests] == [math.inf, sigma]


@pytest.mark.parametrize("name", SAMPLERS)
def test_many_steps_from_infinite_noise_end_within_the_data(name):
    latents, _, requests = run(change(JOB, sampler=name, steps=20, schedule="karras"))
    assert float(latents.mean()) == pytest.approx(MEAN, abs=0.3)  # 256 values: standard error 0.05
    assert 0.5 * SPREAD < float(latents.std()) < 1.5 * SPREAD
    assert sum(math.isinf(rows[0].sigma) for rows in requests) == 1


@pytest.mark.parametrize("name", ["k_euler", "k_heun", "k_dpmpp_2m", "k_lms", "plms"])
def test_the_sampler_starts_with_an_empty_history_after_the_first_step(name):
    """The output at infinite noise affects the run only through the latents at the second sigma."""
    job = change(JOB, sampler=name, steps=6)
    latents, noise, _ = run(job)
    sigmas = plan_first(job, ZSNR).sigmas[1:]
    x = MEAN + sigmas[0] * noise.initial.double()
    sampler = SAMPLERS[name](x, sigmas, noise.step)
    try:
        request = next(sampler)
        while True:
            request = sampler.send(ideal_estimate(*request))
    except StopIteration as stop:
        torch.testing.assert_close(latents, stop.value)


def test_an_ordinary_model_starts_at_sigma_max_without_a_special_step():
    table = scaled_linear()
    network = lambda row: (row.x - ideal_estimate(row.x, row.sigma)) / row.sigma  # noqa: E731
    latents, noise, requests = run(change(JOB, steps=1), network, table, "eps")
    assert requests[0][0].sigma == table.sigma_max
    torch.testing.assert_close(
        latents, ideal_estimate(noise.initial.double() * table.sigma_max, table.sigma_max)
    )


def first_values(rows):
    return [float(row.conditioning.context[0, 0]) for row in rows]


def test_rows_are_the_prompt_and_the_negative_prompt():
    _, _, requests = run(change(JOB, guidance=Guidance(scale=5.0)))
    assert [first_values(rows) for rows in requests] == [[1, -1], [1, -1]]


def test_uncond_scale_adds_the_empty_prompt_and_near_zero_replaces_the_negative_by_it():
    assert first_values(run(change(JOB, guidance=Guidance(uncond_scale=0.5)))[2][0]) == [1, -1, 0]
    assert first_values(run(change(JOB, guidance=Guidance(uncond_scale=1e-5)))[2][0]) == [1, 0]


def test_the_negative_is_not_evaluated_outside_its_window():
    guidance = Guidance(scale=5.0, skip_above=19.0, skip_below=1.0)
    _, _, requests = run(change(JOB, steps=28, guidance=guidance))
    for rows in requests:
        assert len(rows) == (2 if 1.0 <= rows[0].sigma <= 19.0 else 1)
    assert len(requests[0]) == 1  # infinite noise is above every threshold


def test_the_window_includes_its_edges():
    sigma = plan_first(change(JOB, steps=28), ZSNR).sigmas[5]
    _, _, requests = run(change(JOB, steps=28, guidance=Guidance(skip_above=sigma, skip_below=sigma)))
    assert [rows[0].sigma for rows in requests if len(rows) == 2] == [sigma]


@pytest.mark.parametrize("prediction", ["v", "eps"])
def test_uncond_zero_asks_for_the_prompt_alone(prediction):
    """With a constant estimate c each channel becomes 0.75 * sqrt(c) above sigma 1, and c below."""
    guidance = Guidance(scale=5.0, skip_above=20.0, uncond_scale=0.5, uncond_zero=UncondZero())
    seen, constant = [], lambda row: torch.full_like(row.x, 0.25)
    networks = {
        "v": velocity_network(constant),
        "eps": lambda row: (row.x - constant(row)) / row.sigma,
    }
    _, _, requests = run(
        change(JOB, steps=12, guidance=guidance),
        networks[prediction],
        scaled_linear(zsnr=prediction == "v"),
        prediction,
        on_estimate=lambda x0, sigma: seen.append((sigma, x0)),
    )
    assert [first_values(rows) for rows in requests] == [[1.0]] * 12
    for sigma, x0 in seen:
        expected = 0.75 * 0.25**0.5 if 1 < sigma <= 20 else 0.25
        torch.testing.assert_close(x0, torch.full_like(x0, expected))


def test_uncond_zero_acts_on_the_step_from_infinite_noise():
    job = change(JOB, steps=1, guidance=Guidance(uncond_zero=UncondZero(0.5)))
    torch.testing.assert_close(run(job)[0], torch.full(SHAPE, 0.5 * MEAN**0.5, dtype=torch.float64))


def test_uncond_zero_needs_no_scale_and_each_image_has_its_own_memory():
    job = change(JOB, steps=6, guidance=Guidance(scale=1.0, uncond_zero=UncondZero()))
    first, again = run(job)[0], run(job)[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, run(change(job, guidance=Guidance(scale=1.0)))[0])


def test_ddim_and_plms_use_table_entries_for_every_schedule():
    for name in ("ddim_v3", "plms"):
        plans = [
            plan_first(change(JOB, sampler=name, steps=28, schedule=s), ZSNR) for s in ("native", "karras")
        ]
        assert plans[0].sigmas == plans[1].sigmas
        assert set(plans[0].sigmas[:-1]) <= set(ZSNR.sigmas)


def test_only_samplers_with_noise_use_brownian_noise():
    assert plan_first(change(JOB, sampler="k_dpmpp_sde"), ZSNR).brownian
    assert plan_first(change(JOB, sampler="k_euler_ancestral", brownian=True), ZSNR).brownian
    assert not plan_first(change(JOB, sampler="k_euler_ancestral"), ZSNR).brownian
    assert not plan_first(change(JOB, brownian=True), ZSNR).brownian
