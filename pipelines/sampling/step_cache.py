"""Caching across steps: most steps run only the outermost level of the UNet, with the deep features of a full step.

Deep features change slowly from step to step, and SDXL's outermost level has no attention (Ma et al. 2023, "DeepCache:
Accelerating Diffusion Models for Free"). Pictures change, so it is off by default.

All evaluations of a step are full, or all are shallow: samplers of second order use the difference between the two of a
step, which would otherwise contain the cache's error. Which steps are full depends on their numbers and on the rows
that they request, and so on the job alone.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from math import isinf

from torch import Tensor

from pipelines.plan import Plan


@dataclass(slots=True)
class StepCache:
    """The deep features of one image.

    Attributes:
        interval: every step of this number is full, from the first one on; so is the last step.
        evaluations: of the network that were counted, after the exact step from infinite noise.
        features: (1, width, h / 2, w / 2) of each row of the last full evaluation, by the row's key.
    """

    plan: Plan
    interval: int
    evaluations: int = 0
    features: dict[Hashable, Tensor] = field(default_factory=dict[Hashable, Tensor])

    def count_step(self, sigma: float) -> int:
        """Return the step, from 1, of the next evaluation, which is counted.

        Its sigma does not tell: a second evaluation may be at the sigma of the next step.
        """
        if isinf(sigma):
            return 1
        step = 1 + isinf(self.plan.sigmas[0]) + self.evaluations // self.plan.sampler.evaluations
        self.evaluations += 1
        return step

    def is_full(self, step: int, keys: Sequence[Hashable]) -> bool:
        """Return whether a step is full: because of its number, or because the last full one lacked one of its rows."""
        is_due = (step - 1) % self.interval == 0 or step >= self.plan.steps
        return is_due or not all(key in self.features for key in keys)


def make_step_cache(plan: Plan, interval: int) -> StepCache | None:
    """Return the cache of one image; None if all its steps are full.

    They are with a sampler that sizes its steps by their errors, among which it would count those of the cache.
    """
    return None if interval == 1 or plan.sampler.evaluations > 2 else StepCache(plan, interval)
