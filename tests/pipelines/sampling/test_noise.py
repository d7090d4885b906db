import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch

from pipelines.sampling.noise import brownian_bounds, make_brownian_noise, make_image_noise, prefetch
from pipelines.sampling.prediction import scaled_linear
from pipelines.sampling.samplers import SAMPLERS
from pipelines.sampling.schedules import make_sigmas

ZSNR = scaled_linear(zsnr=True)
SHAPE = (4, 8, 8)


def make_noise(name, seed=7, steps=6, executor=None, brownian=False):
    sigmas = make_sigmas("native", steps, ZSNR)
    return make_image_noise(seed, SHAPE, SAMPLERS[name], sigmas, ZSNR, brownian, executor), sigmas


def test_noise_is_drawn_in_the_documented_order():
    generator = torch.Generator().manual_seed(7)
    expected = [torch.randn(SHAPE, generator=generator) for _ in range(3)]
    noise, _ = make_noise("k_euler_ancestral")
    assert torch.equal(noise.initial, expected[0])
    assert noise.renewal is not None
    assert torch.equal(noise.renewal, expected[1])
    assert torch.equal(noise.step(50.0, 20.0), expected[2])


def test_a_deterministic_sampler_needs_only_initial_noise():
    noise, _ = make_noise("k_euler")
    assert noise.renewal is None


def test_seeds_are_taken_modulo_2_to_the_32():
    assert torch.equal(
        make_noise("k_euler", seed=-1)[0].initial, make_noise("k_euler", seed=2**32 - 1)[0].initial
    )


@pytest.mark.parametrize("brownian", [False, True])
def test_prefetched_noise_is_the_same_noise(brownian):
    plain, sigmas = make_noise("k_dpmpp_sde", brownian=brownian)
    with ThreadPoolExecutor(1) as executor:
        prefetched, _ = make_noise("k_dpmpp_sde", executor=executor, brownian=brownian)
        for sigma, target in pairwise(sigmas[1:-1]):
            middle = math.sqrt(sigma * target)
            assert torch.equal(prefetched.step(sigma, middle), plain.step(sigma, middle))
            assert torch.equal(prefetched.step(sigma, target), plain.step(sigma, target))


def test_prefetched_noise_requested_out_of_order_fails():
    with ThreadPoolExecutor(1) as executor:
        prefetched = prefetch(lambda sigma, target: torch.zeros(1), [(3.0, 2.0)], executor)
        with pytest.raises(AssertionError, match="order"):
            prefetched(9.0, 2.0)


def test_brownian_increments_have_unit_variance_and_add_up():
    low, high = brownian_bounds(ZSNR)
    noise = make_brownian_noise(3, (4, 64, 64), low, high)
    a, b, total = noise(50.0, 20.0), noise(20.0, 5.0), noise(50.0, 5.0)
    # 16,384 values: the standard error of a standard deviation is 0.0055, of a correlation 0.008
    for increment in (a, b, total):
        assert float(increment.std()) == pytest.approx(1.0, abs=0.025)
    assert abs(float((a * b).mean())) < 0.035
    summed = (a * math.sqrt(30) + b * math.sqrt(15)) / math.sqrt(45)
    torch.testing.assert_close(summed, total, rtol=0, atol=2e-4)  # float32 sums of path values of size ~7


def test_the_brownian_path_does_not_depend_on_the_number_of_steps():
    assert brownian_bounds(ZSNR) == (ZSNR.sigma_min / 2, 2 * ZSNR.sigmas[-2])
    assert brownian_bounds(ZSNR.with_sigma_max(20000.0))[1] == 40000.0
    short, _ = make_noise("k_dpmpp_2m_sde", steps=6, brownian=True)
    long, _ = make_noise("k_dpmpp_2m_sde", steps=40, brownian=True)
    assert torch.equal(short.step(9.0, 4.0), long.step(9.0, 4.0))
