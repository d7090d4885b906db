import math

import pytest
import torch

from pipelines.errors import PipelineError
from pipelines.sampling.prediction import (
    PREDICTIONS,
    edm,
    from_velocity,
    input_scale,
    scaled_linear,
    to_velocity,
)  # fmt: skip

EPS, ZSNR = scaled_linear(), scaled_linear(zsnr=True)


def exact_output(kind, x0, noise, sigma):
    """Return the output of a perfect network of this prediction type."""
    alpha, sigma_vp = 1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)
    velocity = alpha * noise - sigma_vp * x0
    return {"eps": noise, "v": velocity, "edm_v": velocity}[kind]


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("sigma", [1e-3, 0.03, 1.0, 14.6, 56.0, 4518.0])
def test_a_perfect_output_converts_to_x0(kind, sigma):
    x0, noise = torch.tensor([0.7, -1.1], dtype=torch.float64), torch.tensor([0.3, 2.0], dtype=torch.float64)
    result = PREDICTIONS[kind](exact_output(kind, x0, noise, sigma), x0 + sigma * noise, sigma)
    # eps loses sigma * 2^-53 to cancellation, v nothing: that is why zero-SNR models predict v
    torch.testing.assert_close(result, x0, rtol=0, atol=1e-15 * max(10.0, 4 * sigma))


def test_at_infinite_noise_v_gives_minus_the_output_and_eps_fails():
    output = torch.tensor([0.5, -2.0])
    assert torch.equal(PREDICTIONS["v"](output, torch.ones(2), math.inf), -output)
    with pytest.raises(PipelineError, match="infinite noise"):
        PREDICTIONS["eps"](output, torch.ones(2), math.inf)


@pytest.mark.parametrize("sigma", [0.03, 5.0, 1000.0, math.inf])
def test_to_velocity_and_from_velocity_are_inverse(sigma):
    x, x0 = torch.randn(9, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    back = from_velocity(to_velocity(x0, x, sigma), x, sigma)
    torch.testing.assert_close(back, x0, rtol=0, atol=1e-12)


def test_noise_tables_equal_the_goldens(golden):
    file = golden("schedules")
    for name, table in (("table_eps", EPS), ("table_zsnr", ZSNR)):
        for t, sigma in file[name].items():
            assert table.sigmas[int(t)] == pytest.approx(sigma, rel=1e-12)


def test_only_the_last_entry_is_infinite_under_zero_terminal_snr():
    assert math.isinf(ZSNR.sigmas[-1])
    assert all(math.isfinite(sigma) for sigma in ZSNR.sigmas[:-1])
    assert ZSNR.sigmas[0] == pytest.approx(EPS.sigmas[0], rel=1e-12)


@pytest.mark.parametrize(
    ("sigma", "t"), [(14.61, 880), (19, 903), (29, 932), (56.18, 962), (447, 994), (math.inf, 999)]
)
def test_nearest_index_is_nearest_in_log_space(sigma, t):
    assert ZSNR.nearest_index(sigma) == t
    assert ZSNR.timestep(sigma) == float(t)


def test_fractional_index_inverts_sigma_at():
    for t in (0.0, 0.25, 500.3, 998.0):
        assert ZSNR.fractional_index(ZSNR.sigma_at(t)) == pytest.approx(t, abs=1e-9)
    assert ZSNR.fractional_index(math.inf) == 999
    assert ZSNR.nearest_index(1e6) == 998
    assert EPS.nearest_index(1e-9) == 0


def test_a_high_sigma_max_replaces_the_last_entry_and_a_low_one_moves_only_the_start():
    high, low = ZSNR.with_sigma_max(20000.0), ZSNR.with_sigma_max(14.6)
    assert (high.sigmas[-1], high.sigma_max) == (20000.0, 20000.0)
    assert (low.sigmas[-1], low.sigma_max) == (math.inf, 14.6)


@pytest.mark.parametrize("table", [EPS, ZSNR], ids=["eps", "zsnr"])
def test_the_lower_of_two_equally_near_entries_is_chosen(table):
    for t in range(998):
        middle = table.sigma_at(t + 0.5)
        for sigma in (math.nextafter(middle, 0), middle, math.nextafter(middle, math.inf)):
            assert table.nearest_index(sigma) == t
        assert table.nearest_index(table.sigma_at(t + 0.500001)) == t + 1


@pytest.mark.parametrize("sigma", [120.0, 7.3, 1.0, 0.02, 0.002])
def test_cosxl_timesteps_are_exactly_a_quarter_of_the_logarithm(sigma):
    assert edm().timestep(sigma) == 0.25 * math.log(sigma)


def test_cosxl_sigmas_are_the_range_that_a_file_names():
    for bounds in ((0.002, 120.0), (0.03, 14.7), (0.01, 999.0)):
        table = edm(*bounds)
        assert (table.sigma_min, table.sigma_max) == bounds == (table.sigmas[0], table.sigmas[-1])
        assert len(table.sigmas) == 1000


def test_sigmas_are_snapped_to_the_entries_of_a_discrete_table_only():
    assert ZSNR.snap(5.0) == ZSNR.sigmas[ZSNR.nearest_index(5.0)] != 5.0
    assert edm().snap(5.0) == 5.0


def test_the_input_has_unit_variance_at_every_sigma():
    assert input_scale(math.inf) == 1.0
    assert input_scale(3.0) == pytest.approx(1 / math.sqrt(10))
