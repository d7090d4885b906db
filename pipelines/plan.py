"""From a job to what a run needs to know: the sampler, its ladder and its guidance. No tensors yet."""

from dataclasses import dataclass

from pipelines.job import Job
from pipelines.sampling.dpm_solver import Ladder
from pipelines.sampling.guidance import Guide, guides, needs_empty, negates_nothing
from pipelines.sampling.halving import HALVED_ABOVE, smaller_above
from pipelines.sampling.prediction import NoiseTable
from pipelines.sampling.samplers import SAMPLERS, Sampler, canonical
from pipelines.sampling.schedules import ladder, last_part, quantised


@dataclass(frozen=True, slots=True)
class Plan:
    """One image's run.

    `below` and `above` bound the sigmas at which the negative prompt is asked for at all;
    `asks_empty` adds the empty prompt as a third row, `negative_is_empty` puts it in the negative's place; above
    each of the sigmas `halved_above` the network's inner part is halved once (deep_shrink.py), above each of
    `smaller_above` the picture itself (pyramid.py).
    """

    sampler: Sampler
    sigmas: Ladder
    brownian: bool
    guides: tuple[Guide, ...]
    scale: float
    below: float
    above: float
    asks_empty: bool
    negative_is_empty: bool
    halved_above: tuple[float, ...] = ()
    smaller_above: tuple[float, ...] = ()

    def guided(self, sigma: float) -> bool:
        """Whether the estimate at this sigma uses the negative prompt."""
        return self.scale != 1 and self.below <= sigma <= self.above

    def halved(self, sigma: float) -> int:
        """How often the network's inner part is halved at this sigma."""
        return sum(sigma > bound for bound in self.halved_above)

    def smaller(self, sigma: float) -> int:
        """How often the copy that is asked about at this sigma is halved; 0 is the picture itself."""
        return sum(sigma > bound for bound in self.smaller_above)


def make_plan(job: Job, table: NoiseTable) -> Plan:
    """Decide a job's run on a network with this noise table.

    Raises:
        UnknownName: the job's sampler or schedule is not in its registry.
    """
    sampler = SAMPLERS[canonical(job.sampler)[0]]
    if sampler.own_ladder:
        sigmas = quantised(ladder("native", job.steps, table), table)
    else:
        sigmas = ladder(job.schedule, job.steps, table, job.sigma_start)
    return Plan(
        sampler=sampler,
        sigmas=sigmas if job.source is None else last_part(sigmas, job.source.strength, table),
        brownian=sampler.brownian or (job.brownian and sampler.eta > 0),
        guides=guides(job.guidance),
        scale=job.guidance.scale,
        below=job.guidance.skip_below,
        above=job.guidance.skip_above,
        asks_empty=needs_empty(job.guidance),
        negative_is_empty=negates_nothing(job.guidance),
        halved_above=tuple(table.sigmas[time] for time in HALVED_ABOVE[: job.deep_shrink]),
        smaller_above=smaller_above(job.width, job.height, job.pyramid),
    )
