"""CosXL-class networks against diffusers' EDM Euler, on a network whose every answer is known."""

from contextlib import nullcontext

import pytest
import torch
from analytic import solve_gaussian_ode
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from drive import run_rows
from jobs import make_job, plan_first

from pipelines.sampling.batching import RowBatcher
from pipelines.sampling.denoise import Estimator, denoise
from pipelines.sampling.noise import ImageNoise
from pipelines.sampling.prediction import PREDICTIONS, edm
from pipelines.text.encoding import Conditioning, PromptEmbeddings

SPREAD = 0.8
STEPS = 14


class ExactUNet:
    """A UNet that has no context, and the timestep for an embedding."""

    def project(self, context):
        return context

    def embed(self, timesteps, pooled, size_ids):
        return timesteps[:, None]

    def project_image(self, vibe):
        raise NotImplementedError

    def drop_graphs(self):
        pass

    def compile_passes(self):
        return nullcontext()

    def run_full(self, sample, embedding, context):
        raise NotImplementedError

    def run_shallow(self, sample, embedding, context, deep):
        raise NotImplementedError

    def __call__(self, sample, embedding, context, halvings=0, residuals=None):
        return predict_velocity(sample, embedding[:, 0])


def predict_velocity(sample, timestep):
    """The exact velocity for data with the distribution N(0, SPREAD^2), from CosXL's own inputs."""
    sigma = (4 * timestep.double()).exp()[:, None, None, None]
    noisy = sample.double() * (sigma**2 + 1).sqrt()
    estimate = noisy * SPREAD**2 / (SPREAD**2 + sigma**2)
    return (noisy / (sigma**2 + 1) - estimate) * (sigma**2 + 1).sqrt() / sigma


def run_diffusers(noise, bounds, schedule):
    scheduler = EDMEulerScheduler(
        sigma_min=bounds[0], sigma_max=bounds[1], sigma_data=1, sigma_schedule=schedule, prediction_type="v_prediction"
    )  # fmt: skip
    scheduler.set_timesteps(STEPS)
    x = noise * bounds[1]
    for t in scheduler.timesteps:
        output = predict_velocity(scheduler.scale_model_input(x, t)[None], t[None])[0]
        x = scheduler.step(output, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("schedule", ["exponential", "karras"])
@pytest.mark.parametrize("bounds", [(0.002, 120.0), (0.01, 80.0), (0.03, 14.6)])
def test_latents_equal_those_of_diffusers_edm_euler(bounds, schedule):
    table = edm(*bounds)
    job = make_job(steps=STEPS, schedule=schedule)
    plan = plan_first(job, table)
    noise = torch.randn(4, 12, 8, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    empty = Conditioning(torch.zeros(77, 2), None)
    estimator = Estimator(plan, PromptEmbeddings(empty, empty, empty), None, PREDICTIONS["edm_v"])
    batcher = RowBatcher(ExactUNet(), table, torch.device("cpu"), torch.float64)
    trajectory = denoise(estimator, noise * bounds[1], ImageNoise(noise, None, lambda sigma, target: noise))
    latents = run_rows(batcher, trajectory)
    # diffusers keeps sigmas in float32
    assert float((latents - run_diffusers(noise, bounds, schedule)).abs().max()) <= 1e-4
    exact = solve_gaussian_ode(noise * bounds[1], bounds[1], 0.0, SPREAD)
    # Euler's discretisation in 14 steps; with the opposite sign the latents are about `bounds[1]` in size
    assert float((latents / exact - 1).abs().max()) < 0.25
    assert float(latents.std()) == pytest.approx(SPREAD, rel=0.25)
