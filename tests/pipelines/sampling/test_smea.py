"""SMEA's low-resolution copy, with networks that are formulas."""

import math
from typing import Any

import pytest
import torch
from analytic import run_denoise, velocity_network
from jobs import change, make_job, plan_first

from pipelines.job import Guidance
from pipelines.sampling.denoise import Estimator, denoise
from pipelines.sampling.noise import make_image_noise
from pipelines.sampling.prediction import PREDICTIONS, scaled_linear
from pipelines.sampling.smea import low_frequency_basis, make_smea
from pipelines.text.encoding import Conditioning, PromptEmbeddings

ZSNR = scaled_linear(zsnr=True)
JOB = make_job(512, 768, steps=20, guidance=Guidance(scale=1.0), seeds=(5,), smea="smea")
NO_TEXT = Conditioning(torch.zeros(77, 3), None)
EMBEDDINGS = PromptEmbeddings(NO_TEXT, NO_TEXT, NO_TEXT)
CPU = torch.device("cpu")


def run(job, network):
    """Run one image on a function that returns x0 for a row; return its latents and the rows of each evaluation."""
    plan = plan_first(job, ZSNR)
    noise = make_image_noise(
        job.passes[0].seeds[0],
        (4, *job.passes[0].latent_size),
        plan.sampler,
        plan.sigmas,
        ZSNR,
        plan.brownian,
    )
    smea = make_smea(job.passes[0].smea, job.passes[0].latent_size, plan.sigmas, CPU)
    estimator = Estimator(plan, EMBEDDINGS, None, PREDICTIONS["v"], smea=smea)
    return run_denoise(denoise(estimator, noise.initial.double(), noise), velocity_network(network))


@pytest.mark.parametrize(("low_size", "size"), [(32, 64), (78, 104), (114, 152), (3, 4)])
def test_the_copy_of_white_noise_is_white(low_size, size):
    down = low_frequency_basis(low_size, size)
    torch.testing.assert_close(down @ down.mT, torch.eye(low_size, dtype=torch.float64))


def test_the_copy_of_an_image_is_the_downscaled_image():
    smea: Any = make_smea("smea", (32, 64), (1.0, 0.5, 0.0), CPU)
    rows = torch.linspace(0, 1, 32, dtype=torch.float64)[:, None]
    image = (torch.cos(2 * rows) + torch.linspace(0, 1, 64, dtype=torch.float64)).expand(4, 32, 64)
    (_, sigma), (copy, low_sigma) = smea.make_views(image, 1.0)
    assert copy.shape == (4, 16, 32)
    assert low_sigma == pytest.approx(sigma / 2)
    averaged = torch.nn.functional.avg_pool2d(image, 2)
    # cutting at half the frequencies causes slight ringing
    torch.testing.assert_close(copy, averaged, atol=0.02, rtol=0)


def test_at_infinite_noise_the_copy_is_unit_noise():
    _, requests = run(JOB, lambda row: torch.zeros_like(row.x))
    full, copy = requests[0]
    assert math.isinf(full.sigma)
    assert math.isinf(copy.sigma)
    assert copy.x.shape == (4, 48, 32)
    assert float(copy.x.std()) == pytest.approx(1, abs=0.03)  # 6,144 values: standard error 0.009


@pytest.mark.parametrize(
    ("smea", "size", "shape", "copies"),
    [
        ("off", (512, 768), None, 0),
        ("smea", (512, 768), (4, 48, 32), 15),
        ("dyn", (512, 768), (4, 48, 32), 12),
        ("dyn", (1024, 1536), (4, 144, 96), 12),
        ("smea", (1024, 1536), (4, 96, 64), 15),
    ],
)
def test_the_copy_has_its_size_and_number_of_steps(smea, size, shape, copies):
    job = change(JOB, smea=smea, width=size[0], height=size[1])
    _, requests = run(job, lambda row: torch.zeros_like(row.x))
    assert [len(rows) for rows in requests] == [2] * copies + [1] * (20 - copies)
    assert {rows[1].x.shape for rows in requests if len(rows) > 1} == ({shape} if shape else set())
    for rows in requests[1:copies]:
        assert rows[1].sigma / rows[0].sigma == pytest.approx(rows[1].x.shape[1] / rows[0].x.shape[1])


def test_low_frequencies_come_from_the_copy_and_high_ones_from_the_image():
    """The network sees gray with a fine pattern at full resolution, and white in the copy."""
    fine = torch.cos(math.pi * 95 * (torch.arange(96, dtype=torch.float64) + 0.5) / 96)[:, None]
    fine = fine.expand(4, 96, 64)

    def network(row):
        is_full_resolution = row.x.shape[-1] == 64
        return fine.clone() if is_full_resolution else torch.ones_like(row.x)

    smea: Any = make_smea("smea", (96, 64), plan_first(JOB, ZSNR).sigmas, CPU)
    x = torch.zeros(4, 96, 64, dtype=torch.float64)
    (_, sigma), (copy, _) = smea.make_views(x, math.inf)
    merged = smea.merge(fine, torch.ones_like(copy), sigma)
    torch.testing.assert_close(merged, 1 + fine, atol=1e-5, rtol=0)  # the transform is in float32
    first, _ = run(change(JOB, steps=1), network)
    torch.testing.assert_close(first, 1 + fine, atol=1e-5, rtol=0)
    latents, _ = run(JOB, network)
    torch.testing.assert_close(latents, fine)  # the copy has no weight when a run ends


def test_equal_estimates_of_both_resolutions_change_nothing():
    latents, _ = run(JOB, lambda row: torch.full_like(row.x, 0.3))
    plain, _ = run(change(JOB, smea="off"), lambda row: torch.full_like(row.x, 0.3))
    torch.testing.assert_close(latents, plain)
