import math
from itertools import pairwise

import pytest

from pipelines.errors import UnknownName
from pipelines.sampling.prediction import scaled_linear
from pipelines.sampling.schedules import SCHEDULES, make_sigmas, snap_to_table, truncate_sigmas

EPS, ZSNR = scaled_linear(), scaled_linear(zsnr=True)


def table_for(family, name):
    if family == "eps":
        return EPS
    if "sigma_max" in name:
        return ZSNR.with_sigma_max(float(name.rsplit("-", 1)[1]))
    return ZSNR


def test_sigmas_equal_the_goldens(golden):
    file = golden("schedules")
    for family in ("eps", "zsnr"):
        for name, expected in file[family].items():
            schedule, steps = name.split("-")[:2]
            sigmas = make_sigmas(schedule, int(steps), table_for(family, name))
            # approx accepts inf == inf; 1e-9 is far above float64 rounding and far below any change of formula
            assert sigmas == pytest.approx([float(value) for value in expected], rel=1e-9), name


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("table", [EPS, ZSNR, ZSNR.with_sigma_max(4518.76), ZSNR.with_sigma_max(14.6)])
def test_every_schedule_falls_strictly_to_zero(schedule, table):
    for steps in range(1, 51):
        sigmas = make_sigmas(schedule, steps, table)
        assert all(high > low for high, low in pairwise(sigmas))
        assert sigmas[0] == table.sigma_max
        assert sigmas[-1] == 0.0
        assert len(sigmas) == steps + 1


def test_native_starts_at_a_finite_sigma_max():
    paper = (29.0, 17.78, 12.36, 9.20, 7.15)  # from a figure caption of arXiv 2409.15997
    assert make_sigmas("native", 28, ZSNR.with_sigma_max(29.0))[:5] == pytest.approx(paper, abs=5e-3)


def test_range_schedules_begin_at_sigma_start_clamped_to_the_table():
    assert make_sigmas("karras", 5, ZSNR, sigma_start=30.0)[1] == pytest.approx(30.0)
    assert make_sigmas("karras", 5, ZSNR, sigma_start=1e9)[1] == pytest.approx(ZSNR.sigmas[-2])
    assert make_sigmas("exponential", 2, ZSNR, sigma_start=0.0)[1] == pytest.approx(ZSNR.sigma_min)


def test_snapped_sigmas_are_table_entries():
    sigmas = snap_to_table(make_sigmas("native", 28, ZSNR), ZSNR)
    assert math.isinf(sigmas[0])
    assert set(sigmas[:-1]) <= set(ZSNR.sigmas)


def test_an_unknown_schedule_error_lists_the_known_ones():
    with pytest.raises(UnknownName, match="karras"):
        make_sigmas("karas", 5, EPS)


@pytest.mark.parametrize("steps", [1, 2, 25, 28, 50])
@pytest.mark.parametrize("strength", [0.01, 0.14, 0.28, 0.5, 0.56, 0.7, 0.99, 1.0])
def test_strength_keeps_its_share_of_steps_and_below_one_starts_at_a_finite_sigma(steps, strength):
    part = truncate_sigmas(make_sigmas("native", steps, ZSNR), strength, ZSNR)
    assert len(part) - 1 == max(1, math.ceil(steps * strength - 1e-9))
    assert math.isinf(part[0]) == (strength == 1)
    assert all(high > low for high, low in pairwise(part))
