"""Early steps that ask about a smaller copy, with networks that are formulas."""

from dataclasses import replace
from math import inf
from typing import Any

import pytest
import torch
from analytic import run_denoise, velocity_network

from pipelines.job import Guidance, Job, Prompts
from pipelines.plan import make_plan
from pipelines.sampling.denoise import Estimator, denoise
from pipelines.sampling.halving import PYRAMID_NOISE, count_pyramid_levels, pyramid_sigmas
from pipelines.sampling.noise import make_image_noise
from pipelines.sampling.prediction import PREDICTIONS, scaled_linear
from pipelines.sampling.pyramid import average, downscale, upscale
from pipelines.sampling.smea import make_smea
from pipelines.text.encoding import Conditioning, PromptEmbeddings

ZSNR = scaled_linear(zsnr=True)
JOB = Job("m", Prompts("a"), 832, 1216, 28, "k_euler", "native", Guidance(1.0), seeds=(5,), pyramid=2)
TEXTS = PromptEmbeddings(*(Conditioning(torch.zeros(77, 3), None) for _ in range(3)))
IDS = (1216, 832, 0, 0, 1216, 832)
WHOLE, HALF, QUARTER = (152, 104), (76, 52), (38, 26)


def run(job, network, **shown):
    """One image over a network that is asked for x0: its latents, and the row of every evaluation."""
    plan = make_plan(job, ZSNR)
    noise = make_image_noise(
        job.seeds[0], (4, *job.latent_size), plan.sampler, plan.sigmas, ZSNR, plan.brownian
    )
    estimator = Estimator(plan, TEXTS, IDS, PREDICTIONS["v"], **shown)
    latents, asked = run_denoise(denoise(estimator, noise.initial.double(), noise), velocity_network(network))
    return latents, [row for rows in asked for row in rows]


def sizes(rows):
    return [tuple(row.x.shape[-2:]) for row in rows]


@pytest.mark.parametrize(
    ("width", "height", "known", "times"),
    [
        *((400, 400, 160_000, 0), (512, 512, 160_000, 1), (832, 1216, 160_000, 2), (832, 1216, 2_000_000, 0)),
        *((2048, 2048, 160_000, 3), (1568, 2048, 160_000, 2), (1056, 1056, 10_000, 2)),  # 196 and 132 latents
    ],
)
def test_a_picture_is_halved_until_the_model_knows_its_size_and_evenly(width, height, known, times):
    assert count_pyramid_levels(width, height, known) == times


def test_every_copy_is_left_when_its_own_noise_and_side_say_so():
    bounds = pyramid_sigmas(1024, 1024, 3)
    assert [sigma * 1024 / 4**times for times, sigma in enumerate(bounds)] == [PYRAMID_NOISE] * 3
    assert pyramid_sigmas(512, 512, 1)[0] == 2 * bounds[0]


def test_the_copy_of_white_noise_is_white_noise_of_the_level_told():
    noise = torch.randn(4, 256, 256, generator=torch.Generator().manual_seed(1))
    for times in (1, 2):
        copy, sigma = downscale(9.0 * noise, 9.0, times)
        assert copy.shape == (4, 256 // 2**times, 256 // 2**times)
        # 16,384 values of it at least
        assert float(copy.std()) == pytest.approx(sigma, rel=0.03)
        unit, infinite = downscale(noise, inf, times)
        assert float(unit.std()) == pytest.approx(1, rel=0.03)
        assert infinite == inf


def test_a_smooth_picture_comes_back_from_its_copy():
    rows, columns = (torch.linspace(0, 1, side)[:, None] for side in WHOLE)
    picture = (torch.cos(2 * rows) + columns.T**2).expand(4, *WHOLE)
    # 0.025 were seen in a corner, where bicubic leans on one side alone
    torch.testing.assert_close(upscale(average(picture, 2), WHOLE), picture, atol=0.03, rtol=0)


def test_a_run_begins_small_and_ends_whole():
    _, asked = run(JOB, lambda row: row.x * 0)
    small, half, whole = (sizes(asked).count(size) for size in (QUARTER, HALF, WHOLE))
    assert min(small, half, whole) > 3
    assert sizes(asked) == [QUARTER] * small + [HALF] * half + [WHOLE] * whole
    sigmas = make_plan(JOB, ZSNR).sigmas
    ratios = [1 / 4] * small + [1 / 2] * half + [1] * whole
    assert [row.sigma for row in asked] == [r * sigma for r, sigma in zip(ratios, sigmas, strict=False)]


def test_a_picture_that_the_network_is_sure_of_comes_out_whole():
    detailed = torch.randn(4, *WHOLE, generator=torch.Generator().manual_seed(2)).double()
    known = {WHOLE: detailed, HALF: average(detailed, 1), QUARTER: average(detailed, 2)}
    drawn, _ = run(JOB, lambda row: known[tuple(row.x.shape[-2:])])
    torch.testing.assert_close(drawn, detailed)


def test_a_copy_is_told_its_own_size_and_shrunk_by_its_own_noise():
    _, asked = run(replace(JOB, deep_shrink=1), lambda row: row.x * 0)
    bound = ZSNR.sigmas[650]
    assert {row.deep_shrink for row in asked} == {0, 1}
    for row in asked:
        height, width = row.x.shape[-2:]
        assert row.time_ids == (8 * height, 8 * width, 0, 0, 8 * height, 8 * width)
        assert row.deep_shrink == (row.sigma > bound)


def test_without_a_pyramid_nothing_is_made_smaller():
    _, asked = run(replace(JOB, pyramid=0), lambda row: row.x * 0)
    assert set(sizes(asked)) == {WHOLE}


def test_what_an_inpainting_network_is_shown_is_made_smaller_too():
    around = torch.rand(5, *WHOLE, generator=torch.Generator().manual_seed(3))
    _, asked = run(JOB, lambda row: row.x * 0, inpaint_channels=around)
    for row in asked:
        times = {WHOLE: 0, HALF: 1, QUARTER: 2}[tuple(row.x.shape[-2:])]
        torch.testing.assert_close(row.extra_channels, average(around, times))


def test_smea_looks_twice_where_the_picture_itself_is_asked_about():
    looks: Any = make_smea("smea", WHOLE, make_plan(JOB, ZSNR).sigmas, torch.device("cpu"))
    _, asked = run(replace(JOB, smea="smea"), lambda row: row.x * 0, smea=looks)
    first = sizes(asked).index(WHOLE)
    assert set(sizes(asked)[:first]) == {QUARTER, HALF}
    assert sizes(asked)[first:][:4] == [WHOLE, HALF] * 2
