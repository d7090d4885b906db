"""Inpainting with a network that always predicts the same value."""

import math

import pytest
import torch
from jobs import change, make_job, plan_first

from pipelines.image.inpainting import LatentBlend, build_inpaint_channels, erase_masked
from pipelines.job import Guidance, InitImage, RgbImage
from pipelines.sampling.denoise import Estimator, denoise
from pipelines.sampling.noise import make_image_noise
from pipelines.sampling.prediction import PREDICTIONS, scaled_linear, to_velocity
from pipelines.sampling.samplers import SAMPLERS
from pipelines.text.encoding import Conditioning, PromptEmbeddings

ZSNR = scaled_linear(zsnr=True)
SHAPE = (4, 8, 8)
TARGET = 0.25
BLANK = RgbImage(64, 64, bytes(64 * 64 * 3))
JOB = make_job(64, 64, steps=12, guidance=Guidance(scale=1.0), seeds=(5,), init=InitImage(BLANK))
NO_TEXT = Conditioning(torch.zeros(77, 3), None)
TEXTS = PromptEmbeddings(NO_TEXT, NO_TEXT, NO_TEXT)
LATENTS = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
HALF_MASK = torch.zeros(1, 8, 8, dtype=torch.float64)
HALF_MASK[..., 4:] = 1


def run(job, mask=HALF_MASK):
    """Run one image with a network that always predicts TARGET; return its latents, its noise and the requested rows."""
    plan = plan_first(job, ZSNR)
    noise = make_image_noise(job.passes[0].seeds[0], SHAPE, plan.sampler, plan.sigmas, ZSNR, plan.brownian)
    unit, first = noise.initial.double(), plan.sigmas[0]
    blend = LatentBlend(LATENTS, unit, mask, plan.sigmas)
    estimator = Estimator(plan, TEXTS, None, PREDICTIONS["v"], blend=blend)
    trajectory = denoise(estimator, unit if math.isinf(first) else LATENTS + first * unit, noise)
    requested = []
    try:
        rows = next(trajectory)
        while True:
            requested += rows
            rows = trajectory.send(
                [to_velocity(torch.full_like(row.x, TARGET), row.x, row.sigma) for row in rows]
            )
    except StopIteration as finished:
        return finished.value, unit, requested


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_image_stays_outside_the_mask_and_the_target_is_inside(name, strength):
    latents, _, _ = run(change(JOB, sampler=name, strength=strength))
    assert torch.equal(latents[..., :4], LATENTS[..., :4])
    # k_dpm_adaptive and the SDE samplers end at the table's lowest sigma, 0.03
    torch.testing.assert_close(latents[..., 4:], torch.full((4, 8, 4), TARGET).double(), atol=0.1, rtol=0)


def test_the_network_gets_the_image_outside_with_the_same_noise_every_time():
    _, unit, requested = run(change(JOB, sampler="k_euler_ancestral"))
    assert math.isinf(requested[0].sigma)
    assert torch.equal(requested[0].x, unit)
    for row in requested[1:]:
        torch.testing.assert_close(row.x[..., :4], (LATENTS + row.sigma * unit)[..., :4])


def test_a_low_mask_value_changes_late():
    mask = torch.full((1, 8, 8), 0.35, dtype=torch.float64)
    latents, unit, requested = run(change(JOB, steps=10), mask)
    is_kept = [torch.allclose(row.x, LATENTS + row.sigma * unit) for row in requested[1:]]
    assert is_kept == [True] * 7 + [False] * 2  # may change from the eighth of ten steps on
    torch.testing.assert_close(latents, torch.full(SHAPE, TARGET).double())


def test_erased_pixels_are_mid_gray_and_the_mask_channel_is_binary():
    image = torch.rand(3, 64, 64) * 2 - 1
    erased = erase_masked(image, HALF_MASK)
    assert (erased[..., 32:] == 0).all()
    assert torch.equal(erased[..., :32], image[..., :32])
    channels = build_inpaint_channels(HALF_MASK * 0.6, LATENTS)
    assert channels.shape == (5, 8, 8)
    assert torch.equal(channels[0], HALF_MASK[0])
    assert torch.equal(channels[1:], LATENTS)
