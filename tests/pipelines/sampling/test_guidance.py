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


def estimates(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 6, 5, generator=generator, dtype=torch.float64) for _ in range(4)]


@pytest.mark.parametrize("sigma", [0.3, 7.0, math.inf])
def test_scale_one_is_the_prompts_own_estimate_whatever_else_is_set(sigma):
    x, cond, uncond, _ = estimates()
    steps = build_guides(Guidance(scale=1.0, rescale=0.7, threshold=Threshold()))
    torch.testing.assert_close(apply_guides(steps, x, sigma, cond, uncond), cond, rtol=0, atol=1e-12)


def test_cfg_is_linear_between_the_two_estimates():
    x, cond, uncond, _ = estimates()
    found = apply_guides((cfg_guide(5.0),), x, 1.0, cond, uncond)
    torch.testing.assert_close(found, uncond + 5 * (cond - uncond))


def test_without_a_negative_the_estimate_is_the_prompts_own():
    x, cond, _, _ = estimates()
    assert apply_guides(build_guides(Guidance(scale=9.0, rescale=0.5)), x, 1.0, cond) is cond


@pytest.mark.parametrize("sigma", [0.3, 7.0, math.inf])
def test_full_rescale_gives_the_velocity_the_prompts_own_spread(sigma):
    x, cond, uncond, _ = estimates()
    found = apply_guides(build_guides(Guidance(scale=9.0, rescale=1.0)), x, sigma, cond, uncond)
    spread, wanted = to_velocity(found, x, sigma).std(), to_velocity(cond, x, sigma).std()
    torch.testing.assert_close(spread, wanted)


def test_rescale_is_not_the_same_in_the_space_of_x0():
    x, cond, uncond, _ = estimates()
    found = apply_guides(build_guides(Guidance(scale=9.0, rescale=1.0)), x, 1.0, cond, uncond)
    assert abs(float(found.std() / cond.std()) - 1) > 0.05


def test_no_rescale_is_no_step_at_all():
    assert len(build_guides(Guidance())) == 1
    assert len(build_guides(Guidance(rescale=0.2))) == 2


def test_uncond_scale_moves_the_negative_between_the_empty_prompt_and_itself():
    x, cond, uncond, empty = estimates()
    found = apply_guides(build_guides(Guidance(scale=5.0, uncond_scale=0.4)), x, 1.0, cond, uncond, empty)
    weak = empty + 0.4 * (uncond - empty)
    torch.testing.assert_close(found, weak + 5 * (cond - weak))


@pytest.mark.parametrize(("strength", "rows"), [(1.0, 2), (0.4, 3), (1e-5, 2), (1.5, 3)])
def test_uncond_scale_asks_for_a_third_row_only_where_it_matters(strength, rows):
    guidance = Guidance(uncond_scale=strength)
    assert 2 + needs_empty(guidance) == rows
    assert uses_empty_negative(guidance) == (strength < 1e-4)


def reference_threshold(cond, uncond, scale, mimic, percentile):
    """The algorithm of sd-dynamic-thresholding, one channel at a time in plain loops."""
    result = torch.empty_like(cond)
    for channel in range(cond.shape[0]):
        c, u = cond[channel], uncond[channel]
        target, actual = u + min(scale, mimic) * (c - u), u + scale * (c - u)
        peak_wanted = (target - target.mean()).abs().max()
        centred = actual - actual.mean()
        reach = torch.sort(centred.abs().flatten()).values
        place = percentile * (len(reach) - 1)
        low = int(place)
        quantile = reach[low] + (place - low) * (reach[min(low + 1, len(reach) - 1)] - reach[low])
        peak = max(quantile, peak_wanted)
        result[channel] = centred.clamp(-peak, peak) * (peak_wanted / peak) + actual.mean()
    return result


def test_dynamic_thresholding_equals_a_plain_loop():
    x, cond, uncond, _ = estimates()
    found = apply_guides(
        build_guides(Guidance(scale=9.0, threshold=Threshold(0.9, 4.0))), x, 1.0, cond, uncond
    )
    torch.testing.assert_close(found, reference_threshold(cond, uncond, 9.0, 4.0, 0.9))


def test_dynamic_thresholding_changes_nothing_up_to_the_mimicked_scale():
    x, cond, uncond, _ = estimates()
    plain = apply_guides(build_guides(Guidance(scale=4.0)), x, 1.0, cond, uncond)
    found = apply_guides(
        build_guides(Guidance(scale=4.0, threshold=Threshold(mimic_scale=5.0))), x, 1.0, cond, uncond
    )
    torch.testing.assert_close(found, plain)
