"""Turns the estimates a sampler requests into rows for the network, and the rows' outputs into estimates (x0).

`denoise` is a coroutine like the samplers, one layer below them: it yields the rows to evaluate and is sent the
network's raw outputs. It handles prediction types, guidance and the exact step from infinite noise. It does not
call the network.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf, isinf, sqrt

from torch import Tensor

from pipelines.adapters.control_map import RowControls
from pipelines.image.inpainting import LatentBlend
from pipelines.plan import Plan
from pipelines.sampling.guidance import (
    Guide,
    apply_guides,
    build_guides,
    needs_empty,
    uses_empty_negative,
)
from pipelines.sampling.noise import ImageNoise
from pipelines.sampling.prediction import ToX0
from pipelines.sampling.pyramid import average, downscale, upscale
from pipelines.sampling.regions import Regions
from pipelines.sampling.smea import Smea
from pipelines.sampling.step_cache import StepCache
from pipelines.text.encoding import Conditioning, PromptEmbeddings
from pipelines.types import NoisyLatents, SamplerCoroutine


@dataclass(frozen=True, slots=True)
class Row:
    """The network's inputs for one forward pass on one image.

    Attributes:
        x: latents (4, h, w); the unit noise itself where sigma is infinite.
        conditioning: the prompt, and the images it attends to.
        time_ids: SDXL's six size ids, or None for networks without them.
        extra_channels: concatenated to the latents without scaling.
        deep_shrink: number of 2x downscales of the UNet's inner features.
        controls: the ControlNets that condition it.
        deep: deep features of an earlier pass of it, with which only the UNet's outermost level is run.
        keep_deep: called with the deep features of its pass, (1, width, h / 2, w / 2).
        image_sigma: of the latents that x may be a downscaled copy of; None if it is that of x.
    """

    x: Tensor
    sigma: float
    conditioning: Conditioning
    time_ids: tuple[float, ...] | None = None
    extra_channels: Tensor | None = None
    deep_shrink: int = 0
    controls: RowControls = ()
    deep: Tensor | None = None
    keep_deep: Callable[[Tensor], None] | None = None
    image_sigma: float | None = None

    @property
    def sampler_sigma(self) -> float:
        """The sigma at which the sampler asks for the estimate, which a plan finds the step of."""
        return self.sigma if self.image_sigma is None else self.image_sigma


Rows = tuple[Row, ...]
RowCoroutine = Generator[Rows, Sequence[Tensor], Tensor]
"""Yields rows, is sent one output for each, and returns final latents or an estimate."""
OnEstimate = Callable[[Tensor, float], None]
"""Called with each denoised estimate and its sigma; must not change the estimate."""


@dataclass(frozen=True, slots=True)
class Estimator:
    """Computes the denoised estimates of one image.

    Attributes:
        inpaint_channels: mask and masked latents (5, h, w) for an inpainting network.
        blend: latent blend with the init image, for inpainting with an ordinary network.
        smea: adds SMEA's low-resolution evaluations.
        controls: the ControlNets that condition all rows, within their shares of the steps.
        on_estimate: an observer, for previews.
        guides: the plan's guides for this image; they may remember its earlier estimates.
        regions: of the characters.
        step_cache: lets most steps run only the outermost level of the UNet.
    """

    plan: Plan
    embeddings: PromptEmbeddings
    time_ids: tuple[float, ...] | None
    to_x0: ToX0
    inpaint_channels: Tensor | None = None
    blend: LatentBlend | None = None
    smea: Smea | None = None
    controls: RowControls = ()
    on_estimate: OnEstimate | None = None
    step_cache: StepCache | None = None
    guides: tuple[Guide, ...] = field(init=False)
    regions: Regions = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "guides", build_guides(self.plan.guidance))
        centers = tuple(character.center for character in self.embeddings.characters)
        object.__setattr__(self, "regions", Regions(centers))

    def estimate(self, x: Tensor, sigma: float) -> RowCoroutine:
        """Request the rows this sigma needs and return x0."""
        if self.blend is not None:
            x = self.blend.blend_input(x, sigma)
        if levels := self.plan.pyramid_levels(sigma):
            x0 = yield from self._estimate_low_resolution(x, sigma, levels)
        else:
            x0 = yield from self._estimate_full_resolution(x, sigma)
        if self.blend is not None:
            x0 = self.blend.blend_estimate(x0, sigma)
        if self.on_estimate is not None:
            self.on_estimate(x0, sigma)
        return x0

    def _estimate_low_resolution(self, x: Tensor, sigma: float, levels: int) -> RowCoroutine:
        """Estimate x0 from downscaled latents and upscale it."""
        view = downscale(x, sigma, levels)
        time_ids = None if self.time_ids is None else tuple(side / 2**levels for side in self.time_ids)
        extra = None if self.inpaint_channels is None else average(self.inpaint_channels, levels)
        rows = self._make_rows(view, sigma, time_ids, extra, self.plan.deep_shrink_levels(view[1]))
        outputs = yield self._cache_rows(rows, sigma)
        return upscale(self._combine_outputs(outputs, *view), (x.shape[-2], x.shape[-1]))

    def _estimate_full_resolution(self, x: Tensor, sigma: float) -> RowCoroutine:
        """Estimate x0 from the latents, and with SMEA also from its low-resolution copy, which is not deep shrunk."""
        views = ((x, sigma),) if self.smea is None else self.smea.make_views(x, sigma)
        shrinks = (self.plan.deep_shrink_levels(sigma), 0)
        rows = tuple(
            row
            for view, shrink in zip(views, shrinks, strict=False)
            for row in self._make_rows(view, sigma, self.time_ids, self.inpaint_channels, shrink)
        )
        outputs = yield self._cache_rows(rows, sigma)
        count = len(outputs) // len(views)
        x0, *low = (
            self._combine_outputs(outputs[k * count : (k + 1) * count], *view) for k, view in enumerate(views)
        )
        if self.smea is not None and low:
            x0 = self.smea.merge(x0, low[0], sigma)
        return x0

    def _make_rows(
        self,
        view: NoisyLatents,
        sigma: float,
        time_ids: tuple[float, ...] | None,
        extra: Tensor | None,
        shrink: int,
    ) -> Rows:
        """Return the rows for one view of the latents, whose own noise level is `sigma`."""
        controls = tuple(
            control for control in self.controls if self.plan.is_within(sigma, control.start, control.end)
        )
        return tuple(
            Row(*view, part, time_ids, extra, shrink, controls, image_sigma=sigma)
            for part in self._select_conditionings(sigma)
        )

    def _cache_rows(self, rows: Rows, sigma: float) -> Rows:
        """Return the rows of an evaluation with cached deep features, or as rows whose deep features are kept.

        With ControlNets and deep shrink every evaluation is full, and nothing is kept.
        """
        if self.step_cache is None:
            return rows
        step, cached = self.step_cache.count_step(sigma), self.step_cache.features
        keys = [(row.conditioning, row.x.shape) for row in rows]
        if any(row.controls or row.deep_shrink for row in rows):
            cached.clear()
            return rows
        if not self.step_cache.is_full(step, keys):
            return tuple(replace(row, deep=cached[key]) for row, key in zip(rows, keys, strict=True))
        cached.clear()
        keep = cached.__setitem__
        return tuple(replace(row, keep_deep=partial(keep, key)) for row, key in zip(rows, keys, strict=True))

    def _combine_outputs(self, outputs: Sequence[Tensor], x: Tensor, sigma: float) -> Tensor:
        """Convert the outputs for one view to estimates, blend the characters' into the base's and apply guidance."""
        estimates = [self.to_x0(output, x, sigma) for output in outputs]
        if self.embeddings.characters:
            estimates = self._blend_characters(estimates, sigma)
        return apply_guides(self.guides if self.plan.uses_guidance(sigma) else (), x, sigma, *estimates)

    def _blend_characters(self, estimates: Sequence[Tensor], sigma: float) -> list[Tensor]:
        """Return the base's estimates with those of the characters, which follow them, blended in."""
        characters = self.embeddings.characters
        count = len(self._select_base(sigma))
        base, rest = list(estimates[:count]), iter(estimates[count:])
        base[0] = self.regions.blend(base[0], [next(rest) for _ in characters])
        if self._uses_negatives(sigma):
            negatives = [base[1] if character.negative is None else next(rest) for character in characters]
            base[1] = self.regions.blend(base[1], negatives)
        return base

    def _select_conditionings(self, sigma: float) -> tuple[Conditioning, ...]:
        """Return the base's conditionings, then those of the characters."""
        characters = self.embeddings.characters
        positives = (character.positive for character in characters)
        negatives = (character.negative for character in characters if self._uses_negatives(sigma))
        return (*self._select_base(sigma), *positives, *(part for part in negatives if part is not None))

    def _uses_negatives(self, sigma: float) -> bool:
        """Whether the characters' own negative prompts are used at this sigma, if there are any."""
        has_any = any(character.negative is not None for character in self.embeddings.characters)
        return has_any and self.plan.uses_negative(sigma) and not uses_empty_negative(self.plan.guidance)

    def _select_base(self, sigma: float) -> tuple[Conditioning, ...]:
        """Return the positive conditioning, then the negative and the empty one where this sigma uses them."""
        if not self.plan.uses_negative(sigma):
            return (self.embeddings.positive,)
        guidance = self.plan.guidance
        negative = self.embeddings.empty if uses_empty_negative(guidance) else self.embeddings.negative
        if needs_empty(guidance):
            return self.embeddings.positive, negative, self.embeddings.empty
        return self.embeddings.positive, negative


def denoise(estimator: Estimator, x: Tensor, noise: ImageNoise) -> RowCoroutine:
    """Generate one image's clean latents from those at the plan's first sigma; unit noise where that is infinite.

    The first step from infinite noise is exact: for an ODE, x1 = x0 + sigma1 * unit noise. The sampler starts after
    it, with an empty history. At sigma1 the share eta of the unit noise is fresh.
    """
    plan, sigmas = estimator.plan, estimator.plan.sigmas
    if isinf(sigmas[0]):
        x0 = yield from estimator.estimate(x, inf)
        if not sigmas[1]:
            return x0
        if noise.renewal is not None:
            x = sqrt(1 - plan.sampler.eta**2) * x + plan.sampler.eta * noise.renewal
        x = x0 + sigmas[1] * x
        sigmas = sigmas[1:]
    x = yield from _run_sampler(plan.sampler(x, sigmas, noise.step), estimator)
    return x if estimator.blend is None else estimator.blend.blend_result(x)


def _run_sampler(sampler: SamplerCoroutine, estimator: Estimator) -> RowCoroutine:
    """Run a sampler to its end on the estimator's estimates."""
    try:
        x, sigma = next(sampler)
        while True:
            x0 = yield from estimator.estimate(x, sigma)
            x, sigma = sampler.send(x0)
    except StopIteration as stop:
        return stop.value
