"""Draws what the first requests are likely to need before the server is ready, so that none waits for a compiler."""

import logging
from collections.abc import Callable, Iterator

from pipelines.errors import DeviceLost, PipelineError
from pipelines.job import Guidance, Job, Pass, Prompts
from pipelines.types import Size
from server.config.profiles import Defaults

log = logging.getLogger("naiad")
MULTIPLE = 64
"""Of which NAI's sizes are."""
CHUNK = "tree, " * 30
"""Text that fills most of a chunk of 75 tokens and leaves no room for itself again."""
MOST_CHUNKS = 3
"""The most that NAI takes."""


def list_common_sizes(defaults: Defaults) -> tuple[Size, ...]:
    """Return a profile's size, the same turned by 90 degrees, and the square of about the same area."""
    width, height = defaults.width, defaults.height
    side = max(1, round((width * height) ** 0.5 / MULTIPLE)) * MULTIPLE
    return tuple(dict.fromkeys(((width, height), (height, width), (side, side))))


def build_jobs(defaults: Defaults, chunks: int, steps: int = 1) -> Iterator[Job]:
    """Yield jobs of some steps with each common size, and prompts of up to that many chunks of text."""
    guidance = Guidance(defaults.scale, defaults.cfg_rescale)
    for size in list_common_sizes(defaults):
        for count in range(1, chunks + 1):
            prompts = Prompts(count * CHUNK, count * CHUNK)
            passes = (Pass(*size, seeds=(0,)),)
            yield Job("warm-up", prompts, steps, defaults.sampler, defaults.noise_schedule, guidance, passes)


def warm_up(
    draw: Callable[[Job], object], defaults: Defaults, *, by_tokens: bool, step_cache: bool = False
) -> None:
    """Draw an image of each common size.

    What fails is logged and left to the requests, which may need less memory or say what is wrong.

    Args:
        draw: raises PipelineError if an image cannot be drawn; DeviceLost is passed on.
        by_tokens: draw one for every number of tokens too, for which graphs and compiled code are each made.
        step_cache: whether most steps of an image run a part of the UNet; not the first and the last.
    """
    for job in build_jobs(defaults, MOST_CHUNKS if by_tokens else 1, 3 if step_cache else 1):
        try:
            draw(job)
        except DeviceLost:
            raise
        except PipelineError as error:
            size = f"{job.passes[0].width}x{job.passes[0].height}"
            log.warning("nothing is prepared for %s, so its first picture takes longer: %s", size, error)
            return
