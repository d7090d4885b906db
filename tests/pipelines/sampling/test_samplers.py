import math
from itertools import pairwise

import pytest
import torch
from analytic import gaussian_denoiser, mixture_denoiser, run_sampler, solve_gaussian_ode, zero_noise
from diffusers.schedulers.scheduling_lcm import LCMScheduler

from pipelines.errors import UnknownName
from pipelines.sampling.noise import list_noise_calls
from pipelines.sampling.prediction import scaled_linear
from pipelines.sampling.samplers import ALIASES, SAMPLERS, resolve_sampler
from pipelines.sampling.schedules import make_sigmas

STOCHASTIC = [name for name, sampler in SAMPLERS.items() if sampler.eta]
DETERMINISTIC = [name for name in SAMPLERS if name not in STOCHASTIC]
TABLE = scaled_linear()


def test_end_states_equal_the_goldens_in_float64(golden):
    file = golden("samplers")
    assert len({case["sampler"] for case in file["cases"]}) == 11
    for case in file["cases"]:
        j = torch.arange(case["size"], dtype=torch.float64)
        x = case["sigmas"][0] * 1.5 * torch.sin(1.3 * j + case["phase"])
        calls = iter(range(1000))

        def noise(sigma, target, calls=calls, j=j):
            return math.sqrt(2) * torch.cos(1.7 * next(calls) + 0.9 * j + 0.2)

        result, _ = run_sampler(SAMPLERS[case["sampler"]](x, tuple(case["sigmas"]), noise), mixture_denoiser)
        expected = torch.tensor(case["result"], dtype=torch.float64)
        # 1e-9: the goldens were summed in another order of the same float64 operations
        assert (result - expected).abs().max() < 1e-9, case["sampler"]
        assert next(calls) == case["noise_calls"]


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_returns_the_denoisers_estimate(name):
    x = torch.linspace(-20, 20, 7, dtype=torch.float64)
    result, evaluations = run_sampler(SAMPLERS[name](x, (14.0, 0.0), zero_noise), mixture_denoiser)
    assert evaluations == 1
    torch.testing.assert_close(result, mixture_denoiser(x, 14.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [2, 3, 28])
@pytest.mark.parametrize("name", SAMPLERS)
def test_data_of_a_single_point_is_reached_exactly(name, steps):
    x = torch.linspace(-20, 20, 7, dtype=torch.float64)
    noise = torch.Generator().manual_seed(0)

    def draw(sigma, target):
        return torch.randn(7, generator=noise, dtype=torch.float64)

    result, _ = run_sampler(
        SAMPLERS[name](x, make_sigmas("native", steps, TABLE), draw), lambda x, sigma: torch.full_like(x, 0.5)
    )
    # the last step of every sampler returns the estimate; the rest is rounding of |x| <= 20
    torch.testing.assert_close(result, torch.full_like(x, 0.5), rtol=0, atol=1e-12)


ORDERS = {
    "k_euler": 1, "k_heun": 2, "k_dpm_2": 2, "k_lms": 2, "k_dpmpp_2m": 2, "ddim_v3": 1, "plms": 2, "k_dpm_fast": 2,
    "k_gradient_estimation": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", ORDERS)
def test_the_error_falls_with_the_order_of_the_method(name):
    spread, start, end = 1.3, 10.0, 0.5
    x = torch.tensor([7.0], dtype=torch.float64)
    exact = solve_gaussian_ode(x, start, end, spread)

    def error(steps):
        sigmas = tuple(start * (end / start) ** (k / steps) for k in range(steps + 1))
        result = state_at_last_sigma(SAMPLERS[name], x, sigmas, gaussian_denoiser(spread))
        return abs(float(result - exact))

    slopes = [math.log2(error(n) / error(2 * n)) for n in (48, 96)]
    # the asymptotic order is approached from below or above; a wrong coefficient costs a full order. lms and plms
    # have a higher order later, but their first, lower-order steps dominate the error
    assert min(slopes) > ORDERS[name] - 0.25, slopes


def state_at_last_sigma(sampler, x, sigmas, denoiser):
    """Return the latents of the evaluation at the last sigma above zero."""
    states = []

    def record(x, sigma):
        if abs(sigma - sigmas[-1]) < 1e-9:
            states.append(x)
        return denoiser(x, sigma)

    run_sampler(sampler(x, (*sigmas, 0.0), zero_noise), record)
    return states[-1]


def test_gradient_estimation_leads_the_slope_past_the_last_one():
    x, sigmas = torch.tensor([8.0], dtype=torch.float64), (4.0, 2.0, 1.0, 0.0)
    estimates, states = [6.0, 3.0, 2.5], []

    def record(x, sigma):
        states.append(float(x))
        return torch.full_like(x, estimates[len(states) - 1])

    result, _ = run_sampler(SAMPLERS["k_gradient_estimation"](x, sigmas, zero_noise), record)
    # slopes .5, then (7 - 3) / 2 = 2, which becomes 2 * 2 - .5 = 3.5
    assert states == [8.0, 7.0, 3.5]
    assert float(result) == 2.5


def test_lcm_renoises_each_estimate_and_returns_the_last():
    x, sigmas = torch.tensor([8.0], dtype=torch.float64), (4.0, 2.0, 0.5, 0.0)
    estimates, requests = [6.0, 3.0, 2.5], []

    def record(x, sigma):
        requests.append((float(x), sigma))
        return torch.full_like(x, estimates[len(requests) - 1])

    noise = lambda sigma, target: torch.tensor([sigma], dtype=torch.float64)  # noqa: E731
    result, _ = run_sampler(SAMPLERS["k_lcm"](x, sigmas, noise), record)
    assert requests == [(8.0, 4.0), (6.0 + 2.0 * 4.0, 2.0), (3.0 + 0.5 * 2.0, 0.5)]
    assert float(result) == 2.5


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_lcm_equals_diffusers_scheduler(steps):
    scheduler = LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.set_timesteps(steps)
    network = lambda x, t: torch.sin(3 * x + t / 300)  # noqa: E731
    start = torch.linspace(-2, 2, 7)
    x, generator = start, torch.Generator().manual_seed(3)
    for t in scheduler.timesteps:
        x, estimate = scheduler.step(network(x, t), int(t), x, generator, return_dict=False)
    generator = torch.Generator().manual_seed(3)
    sigmas = make_sigmas("lcm", steps, TABLE)

    def denoise(x, sigma):
        return x - sigma * network(x / math.sqrt(sigma**2 + 1), TABLE.nearest_index(sigma))

    draw = lambda sigma, target: torch.randn(7, generator=generator)  # noqa: E731
    first = start * math.sqrt(sigmas[0] ** 2 + 1)
    result, _ = run_sampler(SAMPLERS["k_lcm"](first, sigmas, draw), denoise)
    # diffusers computes in float32 and mixes in the boundary condition, 7e-6 at most here
    torch.testing.assert_close(result, estimate, rtol=1e-3, atol=1e-3)


def test_lcm_samples_of_a_consistency_model_have_the_standard_deviation_of_the_data():
    spread, generator = 1.3, torch.Generator().manual_seed(1)
    draw = lambda *_: torch.randn(60_000, generator=generator, dtype=torch.float64)  # noqa: E731
    sigmas = make_sigmas("lcm", 4, TABLE)
    x = draw() * math.sqrt(sigmas[0] ** 2 + spread**2)
    trajectory_end = lambda x, sigma: x * spread / math.sqrt(spread**2 + sigma**2)  # noqa: E731
    result, _ = run_sampler(SAMPLERS["k_lcm"](x, sigmas, draw), trajectory_end)
    assert float(result.std()) == pytest.approx(spread, rel=0.01)


def test_dpm_adaptive_keeps_its_tolerance():
    x = torch.tensor([7.0], dtype=torch.float64)
    sigmas = (10.0, 0.5)
    result = state_at_last_sigma(SAMPLERS["k_dpm_adaptive"], x, sigmas, gaussian_denoiser(1.3))
    exact = solve_gaussian_ode(x, 10.0, 0.5, 1.3)
    assert abs(float(result / exact) - 1) < 0.05  # its relative tolerance per step


def test_dpm_adaptive_makes_at_most_200_evaluations():
    def rough(x, sigma):
        return torch.sin(40 * x / sigma)

    x = torch.linspace(-9, 9, 50, dtype=torch.float64)
    result, evaluations = run_sampler(SAMPLERS["k_dpm_adaptive"](x, (14.6, 0.03, 0.0), zero_noise), rough)
    assert evaluations <= 200
    assert result.isfinite().all()


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "k_lcm"])
def test_samples_have_the_standard_deviation_of_the_data(name):
    spread, count = 1.3, 60_000
    generator = torch.Generator().manual_seed(1)

    def draw(sigma=0.0, target=0.0):
        return torch.randn(count, generator=generator, dtype=torch.float64)

    sigmas = make_sigmas("karras", 250, TABLE)
    x = draw() * math.sqrt(sigmas[0] ** 2 + spread**2)
    result, _ = run_sampler(SAMPLERS[name](x, sigmas, draw), gaussian_denoiser(spread))
    # 0.3 % statistical (60,000 draws), the rest is the discretisation; dpm_adaptive stops at its own tolerance
    assert float(result.std()) == pytest.approx(spread, rel=0.05 if name == "k_dpm_adaptive" else 0.02)
    assert abs(float(result.mean())) < 0.03


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "k_dpm_adaptive"])
def test_elements_are_sampled_independently(name):
    x = torch.linspace(-20, 20, 5, dtype=torch.float64)
    sigmas = make_sigmas("native", 9, TABLE)

    def noise(part):
        calls = iter(range(1000))
        return lambda sigma, target: torch.sin(next(calls) + torch.arange(5, dtype=torch.float64)[part])

    together, _ = run_sampler(SAMPLERS[name](x, sigmas, noise(slice(None))), mixture_denoiser)
    alone, _ = run_sampler(SAMPLERS[name](x[2:3], sigmas, noise(slice(2, 3))), mixture_denoiser)
    torch.testing.assert_close(together[2:3], alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_use_no_noise(name):
    def refuse(sigma, target):
        raise AssertionError("noise")

    run_sampler(SAMPLERS[name](torch.ones(3), make_sigmas("native", 12, TABLE), refuse), mixture_denoiser)


@pytest.mark.parametrize("name", SAMPLERS)
def test_list_noise_calls_predicts_the_calls_of_a_run(name):
    sigmas, calls = make_sigmas("karras", 11, TABLE), []

    def record(sigma, target):
        calls.append((sigma, target))
        return torch.zeros(3)

    run_sampler(SAMPLERS[name](torch.ones(3), sigmas, record), mixture_denoiser)
    assert list_noise_calls(SAMPLERS[name], sigmas) == calls
    assert bool(calls) == (name in STOCHASTIC)


def test_aliases_resolve_to_samplers_and_unknown_names_get_a_suggestion():
    assert all(resolve_sampler(alias)[0] in SAMPLERS for alias in ALIASES)
    assert resolve_sampler("nai_smea_dyn") == ("k_euler_ancestral", "dyn")
    with pytest.raises(UnknownName, match="did you mean 'k_euler'"):
        resolve_sampler("k_eular")


def test_dpm_adaptive_steps_like_k_diffusion_where_both_orders_agree():
    """Data in one point: orders 2 and 3 agree to the last digits, and k-diffusion's rule enlarges the step by 2.57."""
    requests = []

    def point(x, sigma):
        requests.append(sigma)
        return torch.zeros_like(x)

    run_sampler(
        SAMPLERS["k_dpm_adaptive"](torch.zeros(3, dtype=torch.float64), (4518.0, 0.03, 0.0), zero_noise),
        point,
    )
    steps = [math.log(high / low) for high, low in pairwise(requests[::3])]
    growth = 1 + math.atan((1 / 1e-8) ** (1 / 3) - 1)
    assert steps[:-1] == pytest.approx([0.05 * growth**k for k in range(len(steps) - 1)], rel=1e-9)
