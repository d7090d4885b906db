"""Early steps that estimate a low-resolution copy, with networks that are formulas."""

from math import inf
from typing import Any

import pytest
import torch
from analytic import run_denoise, velocity_network
from jobs import change, make_job, plan_first

from pipelines.job import Guidance
from pipelines.sampling.denoise import Estimator, denoise
from pipelines.sampling.noise import make_image_noise
from pipelines.sampling.prediction import PREDICTIONS, scaled_linear
from pipelines.sampling.pyramid import average, downscale, upscale
from pipelines.sampling.smea import make_smea
from pipelines.text.encoding import Conditioning, PromptEmbeddings

ZSNR = scaled_linear(zsnr=True)
JOB = make_job(832, 1216, steps=28, guidance=Guidance(1.0), seeds=(5,), pyramid=2)
NO_TEXT = Conditioning(torch.zeros(77, 3), None)
EMBEDDINGS = PromptEmbeddings(NO_TEXT, NO_TEXT, NO_TEXT)
IDS = (1216, 832, 0, 0, 1216, 832)
FULL, HALF, QUARTER = (152, 104), (76, 52), (38, 26)


def run(job, network, **options):
    """Run one image on a function that returns x0 for a row; return its latents and the row of every evaluation."""
    plan = plan_first(job, ZSNR)
    noise = make_image_noise(
        job.passes[0].seeds[0],
        (4, *job.passes[0].latent_size),
        plan.sampler,
        plan.sigmas,
        ZSNR,
        plan.brownian,
    )
    estimator = Estimator(plan, EMBEDDINGS, IDS, PREDICTIONS["v"], **options)
    latents, requests = run_denoise(
        denoise(estimator, noise.initial.double(), noise), velocity_network(network)
    )
    return latents, [row for rows in requests for row in rows]


def sizes(rows):
    return [tuple(row.x.shape[-2:]) for row in rows]


def test_the_copy_of_white_noise_is_white_noise_of_the_returned_sigma():
    noise = torch.randn(4, 256, 256, generator=torch.Generator().manual_seed(1))
    for times in (1, 2):
        copy, sigma = downscale(9.0 * noise, 9.0, times)
        assert copy.shape == (4, 256 // 2**times, 256 // 2**times)
        # at least 16,384 values
        assert float(copy.std()) == pytest.approx(sigma, rel=0.03)
        unit, infinite = downscale(noise, inf, times)
        assert float(unit.std()) == pytest.approx(1, rel=0.03)
        assert infinite == inf


def test_a_smooth_image_survives_downscaling_and_upscaling():
    rows, columns = (torch.linspace(0, 1, side)[:, None] for side in FULL)
    image = (torch.cos(2 * rows) + columns.T**2).expand(4, *FULL)
    # 0.025 was measured in a corner, where bicubic has neighbors on one side only
    torch.testing.assert_close(upscale(average(image, 2), FULL), image, atol=0.03, rtol=0)


def test_a_run_starts_at_low_and_ends_at_full_resolution():
    _, rows = run(JOB, lambda row: row.x * 0)
    quarter, half, full = (sizes(rows).count(size) for size in (QUARTER, HALF, FULL))
    assert min(quarter, half, full) > 3
    assert sizes(rows) == [QUARTER] * quarter + [HALF] * half + [FULL] * full
    sigmas = plan_first(JOB, ZSNR).sigmas
    ratios = [1 / 4] * quarter + [1 / 2] * half + [1] * full
    assert [row.sigma for row in rows] == [
        ratio * sigma for ratio, sigma in zip(ratios, sigmas, strict=False)
    ]


def test_a_certain_estimate_is_returned_in_full_detail():
    detailed = torch.randn(4, *FULL, generator=torch.Generator().manual_seed(2)).double()
    estimates = {FULL: detailed, HALF: average(detailed, 1), QUARTER: average(detailed, 2)}
    latents, _ = run(JOB, lambda row: estimates[tuple(row.x.shape[-2:])])
    torch.testing.assert_close(latents, detailed)


def test_a_copy_gets_time_ids_of_its_size_and_deep_shrink_of_its_sigma():
    _, rows = run(change(JOB, deep_shrink=1), lambda row: row.x * 0)
    bound = ZSNR.sigmas[650]
    assert {row.deep_shrink for row in rows} == {0, 1}
    for row in rows:
        height, width = row.x.shape[-2:]
        assert row.time_ids == (8 * height, 8 * width, 0, 0, 8 * height, 8 * width)
        assert row.deep_shrink == (row.sigma > bound)


def test_without_a_pyramid_every_row_has_full_resolution():
    _, rows = run(change(JOB, pyramid=0), lambda row: row.x * 0)
    assert set(sizes(rows)) == {FULL}


def test_inpaint_channels_are_downscaled_with_the_copy():
    channels = torch.rand(5, *FULL, generator=torch.Generator().manual_seed(3))
    _, rows = run(JOB, lambda row: row.x * 0, inpaint_channels=channels)
    for row in rows:
        times = {FULL: 0, HALF: 1, QUARTER: 2}[tuple(row.x.shape[-2:])]
        torch.testing.assert_close(row.extra_channels, average(channels, times))


def test_smea_adds_its_copy_only_to_rows_of_full_resolution():
    smea: Any = make_smea("smea", FULL, plan_first(JOB, ZSNR).sigmas, torch.device("cpu"))
    _, rows = run(change(JOB, smea="smea"), lambda row: row.x * 0, smea=smea)
    first = sizes(rows).index(FULL)
    assert set(sizes(rows)[:first]) == {QUARTER, HALF}
    assert sizes(rows)[first:][:4] == [FULL, HALF] * 2
