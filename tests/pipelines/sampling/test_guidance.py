import math

import pytest
import torch

from pipelines.job import Guidance, Threshold
from pipelines.sampling.guidance import (
    apply_guides,
    build_guides,
    cfg_guide,
    needs_empty,
    uses_empty_negative,
)
from pipelines.sampling.prediction import to_velocity


def make_tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 6, 5, generator=generator, dtype=torch.float64) for _ in range(4)]


@pytest.mark.parametrize("sigma", [0.3, 7.0, math.inf])
def test_scale_one_returns_the_prompts_estimate_with_every_other_setting(sigma):
    x, cond, uncond, _ = make_tensors()
    guides = build_guides(Guidance(scale=1.0, rescale=0.7, threshold=Threshold()))
    torch.testing.assert_close(apply_guides(guides, x, sigma, cond, uncond), cond, rtol=0, atol=1e-12)


def test_cfg_is_linear_between_the_two_estimates():
    x, cond, uncond, _ = make_tensors()
    result = apply_guides((cfg_guide(5.0),), x, 1.0, cond, uncond)
    torch.testing.assert_close(result, uncond + 5 * (cond - uncond))


def test_without_a_negative_the_prompts_estimate_is_returned():
    x, cond, _, _ = make_tensors()
    assert apply_guides(build_guides(Guidance(scale=9.0, rescale=0.5)), x, 1.0, cond) is cond


@pytest.mark.parametrize("sigma", [0.3, 7.0, math.inf])
def test_full_rescale_gives_the_velocity_the_prompts_standard_deviation(sigma):
    x, cond, uncond, _ = make_tensors()
    result = apply_guides(build_guides(Guidance(scale=9.0, rescale=1.0)), x, sigma, cond, uncond)
    actual, expected = to_velocity(result, x, sigma).std(), to_velocity(cond, x, sigma).std()
    torch.testing.assert_close(actual, expected)


def test_rescale_of_the_velocity_differs_from_rescale_of_x0():
    x, cond, uncond, _ = make_tensors()
    result = apply_guides(build_guides(Guidance(scale=9.0, rescale=1.0)), x, 1.0, cond, uncond)
    assert abs(float(result.std() / cond.std()) - 1) > 0.05


def test_a_rescale_of_zero_adds_no_guide():
    assert len(build_guides(Guidance())) == 1
    assert len(build_guides(Guidance(rescale=0.2))) == 2


def test_uncond_scale_moves_the_negative_between_the_empty_prompt_and_itself():
    x, cond, uncond, empty = make_tensors()
    result = apply_guides(build_guides(Guidance(scale=5.0, uncond_scale=0.4)), x, 1.0, cond, uncond, empty)
    weak = empty + 0.4 * (uncond - empty)
    torch.testing.assert_close(result, weak + 5 * (cond - weak))


@pytest.mark.parametrize(("strength", "rows"), [(1.0, 2), (0.4, 3), (1e-5, 2), (1.5, 3)])
def test_uncond_scale_needs_a_third_row_only_where_it_has_an_effect(strength, rows):
    guidance = Guidance(uncond_scale=strength)
    assert 2 + needs_empty(guidance) == rows
    assert uses_empty_negative(guidance) == (strength < 1e-4)


def threshold_in_loops(cond, uncond, scale, mimic, percentile):
    """Apply sd-dynamic-thresholding to one channel at a time in plain loops."""
    result = torch.empty_like(cond)
    for channel in range(cond.shape[0]):
        c, u = cond[channel], uncond[channel]
        target, actual = u + min(scale, mimic) * (c - u), u + scale * (c - u)
        mimic_peak = (target - target.mean()).abs().max()
        centered = actual - actual.mean()
        magnitudes = torch.sort(centered.abs().flatten()).values
        position = percentile * (len(magnitudes) - 1)
        low = int(position)
        quantile = magnitudes[low] + (position - low) * (
            magnitudes[min(low + 1, len(magnitudes) - 1)] - magnitudes[low]
        )
        peak = max(quantile, mimic_peak)
        result[channel] = centered.clamp(-peak, peak) * (mimic_peak / peak) + actual.mean()
    return result


def test_dynamic_thresholding_equals_a_plain_loop():
    x, cond, uncond, _ = make_tensors()
    result = apply_guides(
        build_guides(Guidance(scale=9.0, threshold=Threshold(0.9, 4.0))), x, 1.0, cond, uncond
    )
    torch.testing.assert_close(result, threshold_in_loops(cond, uncond, 9.0, 4.0, 0.9))


def test_dynamic_thresholding_changes_nothing_up_to_the_mimicked_scale():
    x, cond, uncond, _ = make_tensors()
    plain = apply_guides(build_guides(Guidance(scale=4.0)), x, 1.0, cond, uncond)
    result = apply_guides(
        build_guides(Guidance(scale=4.0, threshold=Threshold(mimic_scale=5.0))), x, 1.0, cond, uncond
    )
    torch.testing.assert_close(result, plain)
