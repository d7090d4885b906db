"""From a job to what a run needs to know: the sampler, its ladder and its guidance. No tensors yet."""

from dataclasses import dataclass

from pipelines.job import Job
from pipelines.sampling.guidance import Guide, build_guides, needs_empty, uses_empty_negative
from pipelines.sampling.halving import DEEP_SHRINK_TIMES, pyramid_sigmas
from pipelines.sampling.prediction import NoiseTable
from pipelines.sampling.samplers import SAMPLERS, Sampler, resolve_sampler
from pipelines.sampling.schedules import make_sigmas, snap_to_table, truncate_sigmas
from pipelines.types import Sigmas


@dataclass(frozen=True, slots=True)
class Plan:
    """One image's run.

    `below` and `above` bound the sigmas at which the negative prompt is asked for at all;
    `asks_empty` adds the empty prompt as a third row, `negative_is_empty` puts it in the negative's place; above
    each of the sigmas `halved_above` the network's inner part is halved once (deep_shrink.py), above each of
    `smaller_above` the picture itself (pyramid.py).
    """

    sampler: Sampler
    sigmas: Sigmas
    brownian: bool
    guides: tuple[Guide, ...]
    scale: float
    sigma_low: float
    sigma_high: float
    needs_empty: bool
    negative_is_empty: bool
    deep_shrink_sigmas: tuple[float, ...] = ()
    pyramid_sigmas: tuple[float, ...] = ()

    def uses_guidance(self, sigma: float) -> bool:
        """Whether the estimate at this sigma uses the negative prompt."""
        return self.scale != 1 and self.sigma_low <= sigma <= self.sigma_high

    def deep_shrink_levels(self, sigma: float) -> int:
        """How often the network's inner part is halved at this sigma."""
        return sum(sigma > bound for bound in self.deep_shrink_sigmas)

    def pyramid_levels(self, sigma: float) -> int:
        """How often the copy that is asked about at this sigma is halved; 0 is the picture itself."""
        return sum(sigma > bound for bound in self.pyramid_sigmas)


def make_plan(job: Job, table: NoiseTable) -> Plan:
    """Decide a job's run on a network with this noise table.

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
        sigmas=sigmas if job.source is None else truncate_sigmas(sigmas, job.source.strength, table),
        brownian=sampler.brownian or (job.brownian and sampler.eta > 0),
        guides=build_guides(job.guidance),
        scale=job.guidance.scale,
        sigma_low=job.guidance.skip_below,
        sigma_high=job.guidance.skip_above,
        needs_empty=needs_empty(job.guidance),
        negative_is_empty=uses_empty_negative(job.guidance),
        deep_shrink_sigmas=tuple(table.sigmas[time] for time in DEEP_SHRINK_TIMES[: job.deep_shrink]),
        pyramid_sigmas=pyramid_sigmas(job.width, job.height, job.pyramid),
    )
