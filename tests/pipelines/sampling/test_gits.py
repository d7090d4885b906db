"""The ladders of ComfyUI's GITSScheduler at coefficient 1.20, as that node prints them; it computes in float32."""

import math
from itertools import pairwise

import pytest

from pipelines.sampling.gits import MOST_STEPS, PERCENTS, gits
from pipelines.sampling.prediction import scaled_linear
from pipelines.sampling.schedules import make_sigmas

EPS, ZSNR = scaled_linear(), scaled_linear(zsnr=True)
PUBLISHED = {
    2: (14.61464119, 0.803307),
    5: (14.61464119, 2.84484982, 1.24153244, 0.59516323, 0.25053367),
    10: (14.61464119, 5.85520077, 2.84484982, 1.67050016, 1.08895338, 0.74807048, 0.50118381, 0.32104823, 0.19894916,
         0.09824532),
    20: (14.61464119, 7.49001646, 4.65472794, 3.07277966, 2.19988537, 1.61558151, 1.24153244, 0.95350921, 0.74807048,
         0.59516323, 0.50118381, 0.41087446, 0.34370604, 0.29807833, 0.25053367, 0.22545385, 0.19894916, 0.17026083,
         0.13792117, 0.09824532),
    28: (14.614641, 9.066239, 6.108645, 4.386601, 3.2606, 2.538629, 2.01416, 1.615582, 1.338553, 1.10874, 0.921023,
         0.774457, 0.656441, 0.566644, 0.501184, 0.434873, 0.380615, 0.336783, 0.304206, 0.269903, 0.243096, 0.225454,
         0.206187, 0.186105, 0.165214, 0.142135, 0.113618, 0.069442),
}  # fmt: skip


@pytest.mark.parametrize("steps", PUBLISHED)
def test_sigmas_are_the_published_ones(steps):
    assert make_sigmas("gits", steps, EPS) == pytest.approx((*PUBLISHED[steps], 0.0), rel=3e-5)


def test_each_ladder_has_its_number_of_steps():
    assert [len(percents) for percents in PERCENTS] == list(range(MOST_STEPS + 1))
    assert all(high < low for percents in PERCENTS for high, low in pairwise(percents))


def test_a_ladder_is_spread_in_log_sigma_over_another_range():
    own, other = gits(10, EPS.sigma_max, EPS.sigma_min), gits(10, 120.0, 0.002)
    assert other[0] == pytest.approx(120.0)
    factors = [
        math.log(high / low) / math.log(a / b)
        for (high, low), (a, b) in zip(pairwise(other), pairwise(own), strict=True)
    ]
    assert factors == pytest.approx([math.log(120.0 / 0.002) / math.log(EPS.sigma_max / EPS.sigma_min)] * 9)


def test_under_zero_terminal_snr_the_ladder_follows_the_exact_step():
    sigmas = make_sigmas("gits", 11, ZSNR, sigma_start=EPS.sigma_max)
    assert sigmas[0] == math.inf
    assert sigmas[1:] == pytest.approx((*PUBLISHED[10], 0.0), rel=3e-5)
