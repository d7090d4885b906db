"""How much work a job is for the device, estimated before any of it has run. Needs no torch."""

from math import ceil

from pipelines.job import Job, Pass, UpscaleJob, VibeJob, Work
from pipelines.sampling.samplers import SAMPLERS, resolve_sampler

DECODING = 2.0
"""Evaluations of one row that take about as long as decoding an image: at 832x1216 an evaluation of SDXL's UNet takes
6.8 TFLOP, and decoding 10.5, less efficiently."""


def count_images(work: Work) -> int:
    """Return the number of images of a job; 1 for one that has none."""
    return len(work.passes[0].seeds) if isinstance(work, Job) else 1


def estimate_cost(work: Work) -> float:
    """Return the work for each image of a job: evaluations of one row, times megapixels."""
    if isinstance(work, VibeJob):
        return 1.0
    if isinstance(work, UpscaleJob):
        return work.width * work.height / 1e6
    return sum(estimate_passes(work))


def estimate_passes(job: Job) -> list[float]:
    """Return the same for each pass of a job, whose sum it is."""
    return [_estimate_pass(job, pass_) for pass_ in job.passes]


def _estimate_pass(job: Job, pass_: Pass) -> float:
    share = 1.0 if pass_.init is None else pass_.strength
    prompts = 1 + len(job.prompts.characters)
    rows = prompts if job.guidance.scale == 1 else 2 * prompts
    evaluations = ceil(job.steps * share) * SAMPLERS[resolve_sampler(job.sampler)[0]].evaluations
    return (evaluations * rows + DECODING) * pass_.width * pass_.height / 1e6
