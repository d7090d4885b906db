"""Jobs of one pass, which is what most tests need."""

from dataclasses import fields, replace

from pipelines.job import Guidance, Job, Pass, Prompts
from pipelines.plan import make_plan

PROMPTS, GUIDANCE = Prompts("a"), Guidance()
PASS_FIELDS = frozenset(field.name for field in fields(Pass))


def make_job(
    width=64,
    height=96,
    prompts=PROMPTS,
    steps=4,
    sampler="k_euler",
    schedule="native",
    guidance=GUIDANCE,
    seeds=(1,),
    **others,
):
    """Build a job; `others` are fields of the job or of its pass."""
    job = Job("m", prompts, steps, sampler, schedule, guidance, (Pass(width, height, seeds),))
    return change(job, **others)


def change(job, **changes):
    """Return the job with other fields, its own or its first pass's."""
    of_pass = {name: value for name, value in changes.items() if name in PASS_FIELDS}
    of_job = {name: value for name, value in changes.items() if name not in PASS_FIELDS}
    first, *others = job.passes
    return replace(job, **{"passes": (replace(first, **of_pass), *others), **of_job})


def plan_first(job, table):
    """Plan a job's first pass."""
    return make_plan(job, job.passes[0], table)
