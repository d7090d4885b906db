"""From a job's pass to what its run needs: sampler, sigmas, guidance and downscales. No tensors yet."""

from dataclasses import dataclass
from math import ceil, log, sqrt

from pipelines.job import Guidance, Job, Pass
from pipelines.sampling.prediction import NoiseTable
from pipelines.sampling.samplers import SAMPLERS, Sampler, resolve_sampler
from pipelines.sampling.schedules import make_sigmas, snap_to_table, truncate_sigmas
from pipelines.types import Sigmas

DEEP_SHRINK_TIMES = (650, 200, 100)
"""Timesteps, of 999 for pure noise, above which features are downscaled: once more above each.

The first ends the first third of a run, as in kohya-ss. With two levels the inner one ends at 200: ended at 400, lines
come out broken, because they are decided between 650 and 200.
"""
PYRAMID_NOISE = 1024.0
"""Sigma times the side in pixels above which the network sees a copy of half the sides.

Measured on the demo model at 832x1216: below this images blur, above it lines break up.
"""


@dataclass(frozen=True, slots=True)
class Downscales:
    """How a run on an image larger than the model was trained for begins.

    Attributes:
        pyramid: 2x downscales of the latents that the network sees at first (sampling/pyramid.py).
        deep_shrink: 2x downscales of the UNet's inner features at that size (sampling/deep_shrink.py).
    """

    pyramid: int = 0
    deep_shrink: int = 0


def choose_downscales(
    width: int,
    height: int,
    pyramid_above: int | None,
    deep_shrink_above: int | None,
    deep_shrink: bool | None = None,
) -> Downscales:
    """Decide the downscales of a pass.

    Args:
        pyramid_above: largest area in pixels that the network sees at full resolution from the start; None for any.
        deep_shrink_above: likewise for the UNet's inner features, of what the network sees.
        deep_shrink: force it on (at least one level) or off; None lets the areas decide.
    """
    pyramid = 0 if pyramid_above is None else _count_pyramid_levels(width, height, pyramid_above)
    if deep_shrink is False:
        return Downscales(pyramid)
    area = width * height / 4**pyramid
    levels = 0 if deep_shrink_above is None else _count_downscales(area, deep_shrink_above)
    return Downscales(pyramid, max(1, levels) if deep_shrink else levels)


def _count_downscales(area: float, known: int) -> int:
    """Number of 2x downscales until `area` is at most `known` pixels."""
    return max(0, ceil(log(area / known, 4)))


def _count_pyramid_levels(width: int, height: int, known: int) -> int:
    """The same, but only as many as divide the latents evenly."""
    levels = _count_downscales(width * height, known)
    while (width // 8) % 2**levels or (height // 8) % 2**levels:
        levels -= 1
    return levels


@dataclass(frozen=True, slots=True)
class Plan:
    """One image's run.

    Attributes:
        deep_shrink_sigmas: above each of these, the UNet's inner features are downscaled by 2 once more.
        pyramid_sigmas: above each of these, the latents are.
    """

    sampler: Sampler
    sigmas: Sigmas
    brownian: bool
    guidance: Guidance
    deep_shrink_sigmas: Sigmas = ()
    pyramid_sigmas: Sigmas = ()

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.sigmas) - 1

    def find_step(self, sigma: float) -> int:
        """Return the step, from 1, in which `sigma` is evaluated: the last one that begins at or above it."""
        return max(1, sum(start >= sigma for start in self.sigmas[:-1]))

    def is_within(self, sigma: float, start: float, end: float) -> bool:
        """Whether the step in which `sigma` is evaluated lies between two shares of the steps."""
        step, rounding = self.find_step(sigma), 1e-9
        return start * self.steps - rounding <= step - 1 and step <= end * self.steps + rounding

    def uses_guidance(self, sigma: float) -> bool:
        """Whether guidance changes the estimate at this sigma."""
        guidance = self.guidance
        is_on = guidance.scale != 1 or guidance.uncond_zero is not None
        return is_on and guidance.skip_below <= sigma <= guidance.skip_above

    def uses_negative(self, sigma: float) -> bool:
        """Whether the estimate at this sigma uses the negative prompt, or the empty one in its place."""
        return self.uses_guidance(sigma) and self.guidance.uncond_zero is None

    def deep_shrink_levels(self, sigma: float) -> int:
        return sum(sigma > bound for bound in self.deep_shrink_sigmas)

    def pyramid_levels(self, sigma: float) -> int:
        return sum(sigma > bound for bound in self.pyramid_sigmas)


def make_plan(job: Job, pass_: Pass, table: NoiseTable) -> Plan:
    """Plan a pass for a network with this noise table.

    Raises:
        UnknownName: the job's sampler or schedule is not in its registry.
    """
    sampler = SAMPLERS[resolve_sampler(job.sampler)[0]]
    if sampler.own_schedule:
        sigmas = snap_to_table(make_sigmas("native", job.steps, table), table)
    else:
        sigmas = make_sigmas(job.schedule, job.steps, table, job.sigma_start)
    return Plan(
        sampler=sampler,
        sigmas=sigmas if pass_.init is None else truncate_sigmas(sigmas, pass_.strength, table),
        brownian=sampler.brownian or (job.brownian and sampler.eta > 0),
        guidance=job.guidance,
        deep_shrink_sigmas=tuple(table.sigmas[time] for time in DEEP_SHRINK_TIMES[: pass_.deep_shrink]),
        pyramid_sigmas=_pyramid_sigmas(pass_),
    )


def _pyramid_sigmas(pass_: Pass) -> Sigmas:
    """The sigmas above which the latents are downscaled once, twice and so on.

    A copy of half the sides has half the noise, so a level ends where its sigma times its side is PYRAMID_NOISE.
    """
    side = sqrt(pass_.width * pass_.height)
    return tuple(PYRAMID_NOISE * 4**level / side for level in range(pass_.pyramid))
