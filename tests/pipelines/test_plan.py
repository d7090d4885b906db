"""Downscales of images larger than a model was trained on."""

import pytest
from jobs import make_job, plan_first

from pipelines.plan import PYRAMID_NOISE, Downscales, choose_downscales
from pipelines.sampling.prediction import scaled_linear


@pytest.mark.parametrize(
    ("area", "levels"),
    [(100, 0), (589_824, 0), (589_825, 1), (1024 * 1024, 1), (4 * 589_824, 1), (1_769_472 * 2, 2)],
)
def test_features_are_downscaled_until_the_known_area_is_reached(area, levels):
    assert choose_downscales(area, 1, None, 589_824) == Downscales(0, levels)


@pytest.mark.parametrize(
    ("width", "height", "known", "levels"),
    [
        *((400, 400, 160_000, 0), (512, 512, 160_000, 1), (832, 1216, 160_000, 2), (832, 1216, 2_000_000, 0)),
        *((2048, 2048, 160_000, 3), (1568, 2048, 160_000, 2), (1056, 1056, 10_000, 2)),  # 196 and 132 latents
    ],
)
def test_a_pyramid_reaches_the_known_area_and_divides_the_latents_evenly(width, height, known, levels):
    assert choose_downscales(width, height, known, None) == Downscales(levels, 0)


def test_deep_shrink_counts_from_the_pyramids_size_and_can_be_forced():
    assert choose_downscales(832, 1216, 409_600, 160_000) == Downscales(1, 1)
    assert choose_downscales(832, 1216, 409_600, 160_000, deep_shrink=False) == Downscales(1, 0)
    assert choose_downscales(256, 256, None, None, deep_shrink=True) == Downscales(0, 1)


def test_every_copy_ends_at_the_same_noise_times_side():
    zsnr = scaled_linear(zsnr=True)
    sigmas = plan_first(make_job(1024, 1024, pyramid=3), zsnr).pyramid_sigmas
    assert [sigma * 1024 / 4**level for level, sigma in enumerate(sigmas)] == [PYRAMID_NOISE] * 3
    assert plan_first(make_job(512, 512, pyramid=1), zsnr).pyramid_sigmas[0] == 2 * sigmas[0]
