"""Between sampler and network: turns each estimate a sampler asks for into rows, and their outputs into x0.

`denoise` is a coroutine like the samplers, one layer down: it yields the rows it wants evaluated and is sent
the network's raw outputs. It knows prediction, guidance and the exact step from infinite noise, and neither
the network nor who else is asking.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from math import inf, isinf, sqrt

from torch import Tensor

from pipelines.image.inpainting import LatentBlend
from pipelines.plan import Plan
from pipelines.sampling.guidance import apply_guides
from pipelines.sampling.noise import ImageNoise
from pipelines.sampling.prediction import ToX0
from pipelines.sampling.pyramid import average, downscale, upscale
from pipelines.sampling.smea import Smea, View
from pipelines.text.encoding import Conditioning, PromptEmbeddings
from pipelines.types import Sampling


@dataclass(frozen=True, slots=True)
class Row:
    """All the network needs to know for one forward pass of one image.

    `x` is (4, h, w), the unit noise itself where sigma is infinite; `context` is (tokens, width); `pooled` and
    `ids`, the six size ids, are None for networks without them; `extra_channels` go beside the latents as they
    are, unscaled; `halvings` asks for deep shrink.
    """

    x: Tensor
    sigma: float
    context: Tensor
    pooled: Tensor | None = None
    ids: tuple[float, ...] | None = None
    extra_channels: Tensor | None = None
    deep_shrink: int = 0
    adapters: tuple[str, ...] = ()


Rows = tuple[Row, ...]
Denoising = Generator[Rows, Sequence[Tensor], Tensor]
Estimating = Generator[Rows, Sequence[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Estimator:
    """Answers a sampler's question about one image.

    `around` is what an inpainting network is shown beside the latents, (5, h, w); `kept` what stays of a picture
    where the network is an ordinary one; `multipass` takes SMEA's second look.
    """

    plan: Plan
    texts: PromptEmbeddings
    ids: tuple[float, ...] | None
    to_x0: ToX0
    inpaint_channels: Tensor | None = None
    blend: LatentBlend | None = None
    smea: Smea | None = None

    def estimate(self, x: Tensor, sigma: float) -> Estimating:
        """Ask for the rows this sigma needs and fold what comes back into x0."""
        if self.blend is not None:
            x = self.blend.blend_input(x, sigma)
        if times := self.plan.pyramid_levels(sigma):
            x0 = yield from self._estimate_low_resolution(x, sigma, times)
        else:
            x0 = yield from self._estimate_full_resolution(x, sigma)
        return x0 if self.blend is None else self.blend.blend_estimate(x0, sigma)

    def _estimate_low_resolution(self, x: Tensor, sigma: float, times: int) -> Estimating:
        """The estimate of a smaller copy, made as large as the picture."""
        texts, look = self.conditionings(sigma), downscale(x, sigma, times)
        ids = None if self.ids is None else tuple(side / 2**times for side in self.ids)
        around = None if self.inpaint_channels is None else average(self.inpaint_channels, times)
        halvings = self.plan.deep_shrink_levels(look[1])
        outputs = yield tuple(Row(*look, text.context, text.pooled, ids, around, halvings) for text in texts)
        return upscale(self._combine_outputs(outputs, *look), (x.shape[-2], x.shape[-1]))

    def _estimate_full_resolution(self, x: Tensor, sigma: float) -> Estimating:
        """The estimate of the picture, with SMEA's second look."""
        texts = self.conditionings(sigma)
        looks = ((x, sigma),) if self.smea is None else self.smea.views(x, sigma)
        outputs = yield tuple(
            self._make_row(look, text, look is looks[0]) for look in looks for text in texts
        )
        x0, *low = (
            self._combine_outputs(outputs[k * len(texts) : (k + 1) * len(texts)], *look)
            for k, look in enumerate(looks)
        )
        if self.smea is not None and low:
            x0 = self.smea.merge(x0, low[0], sigma)
        return x0

    def _make_row(self, look: View, text: Conditioning, is_first: bool) -> Row:
        halvings = self.plan.deep_shrink_levels(look[1]) if is_first else 0
        return Row(*look, text.context, text.pooled, self.ids, self.inpaint_channels, halvings)

    def _combine_outputs(self, outputs: Sequence[Tensor], x: Tensor, sigma: float) -> Tensor:
        return apply_guides(self.plan.guides, x, sigma, *(self.to_x0(output, x, sigma) for output in outputs))

    def conditionings(self, sigma: float) -> tuple[Conditioning, ...]:
        """The prompt, then the negative and the empty prompt where they are used."""
        if not self.plan.uses_guidance(sigma):
            return (self.texts.positive,)
        negative = self.texts.empty if self.plan.negative_is_empty else self.texts.negative
        if self.plan.needs_empty:
            return self.texts.positive, negative, self.texts.empty
        return self.texts.positive, negative


def denoise(estimator: Estimator, x: Tensor, noise: ImageNoise) -> Denoising:
    """Draw one image: from its start to clean latents.

    Args:
        x: the start at the ladder's first sigma; unit noise where that is infinite.
    """
    plan, sigmas = estimator.plan, estimator.plan.sigmas
    if isinf(sigmas[0]):
        x0 = yield from estimator.estimate(x, inf)
        if not sigmas[1]:
            return x0
        x = x0 + sigmas[1] * _renew_noise(x, noise.renewal, plan.sampler.eta)
        sigmas = sigmas[1:]
    x = yield from _answer_sampler(plan.sampler(x, sigmas, noise.step), estimator)
    return x if estimator.blend is None else estimator.blend.blend_result(x)


def _renew_noise(unit: Tensor, fresh: Tensor | None, eta: float) -> Tensor:
    """The unit noise of the second rung: the first's own, or as much of it as eta leaves."""
    return unit if fresh is None else sqrt(1 - eta**2) * unit + eta * fresh


def _answer_sampler(sampling: Sampling, estimator: Estimator) -> Denoising:
    """Run a sampler, answering every question it asks."""
    try:
        x, sigma = next(sampling)
        while True:
            x0 = yield from estimator.estimate(x, sigma)
            x, sigma = sampling.send(x0)
    except StopIteration as finished:
        return finished.value
