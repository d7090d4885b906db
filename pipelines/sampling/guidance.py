"""Guidance: predictions with and without the prompt, combined by a fold of small functions.

Each guide takes a `Prediction` and returns the next; the estimate so far is its `x0`. All of them work on one
image's (channels, height, width) in the sampler's own precision, at `sigma = inf` too, where `x` is the unit
noise. CFG: Ho & Salimans 2022; rescale: Lin et al. 2023, section 3.4, on the velocity; dynamic thresholding
with a mimicked scale: sd-dynamic-thresholding; uncond scale: NAI's Undesired Content Strength (our reading).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING

from pipelines.job import Guidance, Threshold
from pipelines.sampling.prediction import from_velocity, to_velocity

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Estimates:
    """Denoised estimates of one evaluation; `uncond` and `empty` are None where they were not asked for."""

    x: "Tensor"
    sigma: float
    cond: "Tensor"
    uncond: "Tensor | None"
    empty: "Tensor | None"
    x0: "Tensor"


Guide = Callable[[Estimates], Estimates]


def build_guides(guidance: Guidance) -> tuple[Guide, ...]:
    """The fold for a job, in its fixed order; what would change nothing is left out."""
    steps: list[Guide] = []
    if needs_empty(guidance):
        steps.append(uncond_scale(guidance.uncond_scale))
    steps.append(cfg(guidance.scale))
    if guidance.threshold is not None:
        steps.append(dynamic_threshold(guidance.scale, guidance.threshold))
    if guidance.rescale:
        steps.append(rescale(guidance.rescale))
    return tuple(steps)


def apply_guides(
    steps: tuple[Guide, ...],
    x: "Tensor",
    sigma: float,
    cond: "Tensor",
    uncond: "Tensor | None" = None,
    empty: "Tensor | None" = None,
) -> "Tensor":
    """Fold the estimates into one x0; without `uncond` the prompt's own estimate is the answer."""
    if uncond is None:
        return cond
    start = Estimates(x, sigma, cond, uncond, empty, cond)
    return reduce(lambda prediction, guide: guide(prediction), steps, start).x0


def uses_empty_negative(guidance: Guidance) -> bool:
    """Whether the negative prompt is switched off, so that the empty prompt stands in its place."""
    return 0 <= guidance.uncond_scale <= 1e-4


def needs_empty(guidance: Guidance) -> bool:
    """Whether the empty prompt is asked for beside the negative one: three rows instead of two."""
    return guidance.uncond_scale != 1 and not uses_empty_negative(guidance)


def uncond_scale(strength: float) -> Guide:
    """Move the negative prediction between the empty prompt's (0) and itself (1), or beyond."""

    def guide(p: Estimates) -> Estimates:
        assert p.uncond is not None
        assert p.empty is not None
        return replace(p, uncond=p.empty + strength * (p.uncond - p.empty))

    return guide


def cfg(scale: float) -> Guide:
    """Away from the negative prediction, `scale` times as far as the prompt's own."""

    def guide(p: Estimates) -> Estimates:
        assert p.uncond is not None
        return replace(p, x0=p.uncond + scale * (p.cond - p.uncond))

    return guide


def dynamic_threshold(scale: float, threshold: Threshold) -> Guide:
    """Give each channel the range it would have had at a lower scale, clipping the few values beyond."""

    def guide(p: Estimates) -> Estimates:
        assert p.uncond is not None
        mimic = p.uncond + min(scale, threshold.mimic_scale) * (p.cond - p.uncond)
        range_wanted = _centred(mimic).abs().amax(dim=(-2, -1), keepdim=True)
        mean = p.x0.mean(dim=(-2, -1), keepdim=True)
        centred = p.x0 - mean
        reach = centred.abs().flatten(-2).quantile(threshold.percentile, dim=-1)[..., None, None]
        peak = reach.maximum(range_wanted).clamp(min=1e-8)
        return replace(p, x0=centred.clamp(-peak, peak) * (range_wanted / peak) + mean)

    return guide


def _centred(x: "Tensor") -> "Tensor":
    return x - x.mean(dim=(-2, -1), keepdim=True)


def rescale(amount: float) -> Guide:
    """Bring the spread of the guided velocity back towards the prompt's own, by this share."""

    def guide(p: Estimates) -> Estimates:
        velocity = to_velocity(p.x0, p.x, p.sigma)
        wanted = to_velocity(p.cond, p.x, p.sigma).std()
        factor = amount * wanted / velocity.std().clamp(min=1e-8) + (1 - amount)
        return replace(p, x0=from_velocity(velocity * factor, p.x, p.sigma))

    return guide
