"""Guidance: functions that combine the estimates with and without the prompt.

Each guide takes an `Estimates` and returns the next one; the result so far is its `x0`. Guides work on one image's
(channels, height, width) in the sampler's dtype, also at `sigma = inf`, where `x` is the unit noise. Sources: Ho &
Salimans 2022 (CFG); Lin et al. 2023, section 3.4 (rescale, applied to the velocity); sd-dynamic-thresholding (with a
mimicked scale, mean start and separate channels); Extraltodeus, Uncond-Zero-for-ComfyUI (the node Uncond Zero); uncond
scale is our reading of NAI's Undesired Content Strength.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING

from pipelines.job import Guidance, Threshold, UncondZero
from pipelines.sampling.prediction import from_velocity, to_velocity

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Estimates:
    """Denoised estimates of one evaluation.

    Attributes:
        cond, uncond, empty: for the prompt, the negative and the empty prompt; None where not evaluated.
        x0: the combined estimate so far.
    """

    x: "Tensor"
    sigma: float
    cond: "Tensor"
    uncond: "Tensor | None"
    empty: "Tensor | None"
    x0: "Tensor"


Guide = Callable[[Estimates], Estimates]


def build_guides(guidance: Guidance) -> tuple[Guide, ...]:
    """Return one image's guides in the order they are applied; a guide that would change nothing is left out."""
    zero = guidance.uncond_zero
    guides = list(_negative_guides(guidance)) if zero is None else [uncond_zero_guide(zero)]
    if guidance.rescale:
        guides.append(rescale_guide(guidance.rescale))
    return tuple(guides)


def _negative_guides(guidance: Guidance) -> Iterator[Guide]:
    """Yield the guides that use the negative prompt."""
    if needs_empty(guidance):
        yield uncond_scale_guide(guidance.uncond_scale)
    yield cfg_guide(guidance.scale)
    if guidance.threshold is not None:
        yield dynamic_threshold_guide(guidance.scale, guidance.threshold)


def apply_guides(
    guides: tuple[Guide, ...],
    x: "Tensor",
    sigma: float,
    cond: "Tensor",
    uncond: "Tensor | None" = None,
    empty: "Tensor | None" = None,
) -> "Tensor":
    """Combine the estimates into one x0; without guides, return `cond` unchanged."""
    start = Estimates(x, sigma, cond, uncond, empty, cond)
    return reduce(lambda estimates, guide: guide(estimates), guides, start).x0


def uses_empty_negative(guidance: Guidance) -> bool:
    """Whether the negative prompt is switched off, so the empty prompt replaces it."""
    return 0 <= guidance.uncond_scale <= 1e-4


def needs_empty(guidance: Guidance) -> bool:
    """Whether the empty prompt is evaluated in addition to the negative one: three rows instead of two."""
    return guidance.uncond_scale != 1 and not uses_empty_negative(guidance)


def uncond_scale_guide(strength: float) -> Guide:
    """Return a guide that replaces `uncond` by `empty + strength * (uncond - empty)`."""

    def guide(p: Estimates) -> Estimates:
        assert p.uncond is not None
        assert p.empty is not None
        return replace(p, uncond=p.empty + strength * (p.uncond - p.empty))

    return guide


def cfg_guide(scale: float) -> Guide:
    """Return the guide of classifier-free guidance."""

    def guide(p: Estimates) -> Estimates:
        assert p.uncond is not None
        return replace(p, x0=p.uncond + scale * (p.cond - p.uncond))

    return guide


def dynamic_threshold_guide(scale: float, threshold: Threshold) -> Guide:
    """Return a guide that gives each channel the range it would have at a lower scale and clips the outliers."""

    def guide(p: Estimates) -> Estimates:
        assert p.uncond is not None
        mimic = p.uncond + min(scale, threshold.mimic_scale) * (p.cond - p.uncond)
        mimic_range = (mimic - mimic.mean(dim=(-2, -1), keepdim=True)).abs().amax(dim=(-2, -1), keepdim=True)
        mean = p.x0.mean(dim=(-2, -1), keepdim=True)
        centered = p.x0 - mean
        quantile = centered.abs().flatten(-2).quantile(threshold.percentile, dim=-1)[..., None, None]
        peak = quantile.maximum(mimic_range).clamp(min=1e-8)
        return replace(p, x0=centered.clamp(-peak, peak) * (mimic_range / peak) + mean)

    return guide


def uncond_zero_guide(settings: UncondZero) -> Guide:
    """Return a guide that evens out the channels' ranges without a negative prompt, above sigma 1.

    It is for one image: an estimate is first led away from the last one of its size.
    """
    last: dict[tuple[int, ...], Tensor] = {}

    def guide(p: Estimates) -> Estimates:
        if p.sigma <= 1:
            return p
        size, x0 = tuple(p.x0.shape), p.x0
        if size in last:
            x0 = _lead_away(x0, last[size], settings.sharpness)
        last[size] = x0
        return replace(p, x0=x0 * settings.scale / _measure_range(x0).clamp(min=1e-8).sqrt())

    return guide


def _lead_away(x0: "Tensor", last: "Tensor", strength: float) -> "Tensor":
    """Subtract the part of `last`'s direction that is orthogonal to `x0`'s, times `x0`'s length, channel by channel."""
    length, last_length = (
        t.square().sum(dim=(-2, -1), keepdim=True).sqrt().clamp(min=1e-8) for t in (x0, last)
    )
    direction, last_direction = x0 / length, last / last_length
    shared = (direction * last_direction).sum(dim=(-2, -1), keepdim=True)
    return x0 - strength * length * (last_direction - shared * direction)


def _measure_range(x0: "Tensor") -> "Tensor":
    """Return each channel's mean of the highest values of every row and the amounts of its lowest, half each.

    In each row as many values count as a quarter of the height, as in the node.
    """
    height, width = x0.shape[-2:]
    count = max(1, min(height // 4, width))
    high, low = (x0.topk(count, largest=largest).values for largest in (True, False))
    return (high.mean(dim=(-2, -1), keepdim=True) + low.abs().mean(dim=(-2, -1), keepdim=True)) / 2


def rescale_guide(amount: float) -> Guide:
    """Return a guide that moves the guided velocity's standard deviation towards the prompt's by the share `amount`."""

    def guide(p: Estimates) -> Estimates:
        velocity = to_velocity(p.x0, p.x, p.sigma)
        cond_std = to_velocity(p.cond, p.x, p.sigma).std()
        factor = amount * cond_std / velocity.std().clamp(min=1e-8) + (1 - amount)
        return replace(p, x0=from_velocity(velocity * factor, p.x, p.sigma))

    return guide
