import math

import pytest
import torch

from pipelines.job import Guidance, Threshold, UncondZero
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


def test_without_guides_the_prompts_estimate_is_returned():
    x, cond, _, _ = make_tensors()
    assert apply_guides((), x, 1.0, cond) is cond


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


def uncond_zero_in_loops(cond, last, scale, sharpness):
    """Apply the node Uncond Zero to one channel at a time; return the result and what the next call gets as `last`."""
    led, result = torch.empty_like(cond), torch.empty_like(cond)
    quarter = cond.shape[1] // 4
    for channel in range(cond.shape[0]):
        estimate = cond[channel]
        if last is not None:
            length = math.sqrt(float((estimate**2).sum()))
            own, other = estimate / length, last[channel] / math.sqrt(float((last[channel] ** 2).sum()))
            estimate = (own - sharpness * (other - own * float((own * other).sum()))) * length
        rows = [sorted(row) for row in estimate.tolist()]
        high = sum(sum(row[-quarter:]) for row in rows) / (quarter * len(rows))
        low = sum(sum(abs(value) for value in row[:quarter]) for row in rows) / (quarter * len(rows))
        led[channel], result[channel] = estimate, estimate * scale / math.sqrt((high + low) / 2)
    return result, led


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 1.5])
def test_uncond_zero_equals_a_plain_loop_over_several_evaluations(sharpness):
    x, *estimates = (
        torch.randn(4, 9, 7, generator=torch.Generator().manual_seed(k)).double() for k in range(4)
    )
    guides, last = build_guides(Guidance(uncond_zero=UncondZero(0.75, sharpness))), None
    for sigma, cond in zip((math.inf, 14.6, 1.1), estimates, strict=True):
        expected, last = uncond_zero_in_loops(cond, last, 0.75, sharpness)
        torch.testing.assert_close(apply_guides(guides, x, sigma, cond), expected)


def test_uncond_zero_leaves_estimates_alone_up_to_sigma_one():
    x, cond, other, _ = make_tensors()
    guides = build_guides(Guidance(uncond_zero=UncondZero()))
    apply_guides(guides, x, 2.0, other)
    assert apply_guides(guides, x, 1.0, cond) is cond


def test_uncond_zero_compares_estimates_of_the_same_size_alone():
    x, cond, other, _ = make_tensors()
    guidance = Guidance(uncond_zero=UncondZero())
    guides = build_guides(guidance)
    apply_guides(guides, x[:, :4], 9.0, other[:, :4])
    torch.testing.assert_close(
        apply_guides(guides, x, 8.0, cond), apply_guides(build_guides(guidance), x, 8.0, cond)
    )


def test_uncond_zero_replaces_the_guides_of_the_negative_and_is_rescaled():
    x, cond, _, _ = make_tensors()
    others = Guidance(9.0, 1.0, uncond_scale=0.5, threshold=Threshold(), uncond_zero=UncondZero())
    result = apply_guides(build_guides(others), x, 7.0, cond)
    factor, _ = uncond_zero_in_loops(cond, None, 0.75, 1.0)
    velocity, target = to_velocity(factor, x, 7.0), to_velocity(cond, x, 7.0)
    torch.testing.assert_close(to_velocity(result, x, 7.0), velocity * target.std() / velocity.std())


def test_uncond_zero_of_flat_latents_is_finite():
    x, zeros = make_tensors()[0], torch.zeros(4, 6, 5)
    guides = build_guides(Guidance(uncond_zero=UncondZero()))
    for sigma in (9.0, 8.0):
        assert apply_guides(guides, x, sigma, zeros).tolist() == zeros.tolist()
    tiny = apply_guides(build_guides(Guidance(uncond_zero=UncondZero())), x[:, :2, :1], 9.0, x[:, :2, :1])
    assert tiny.isfinite().all()
