"""All that is loaded on one device: a model that draws, and what enlarges its pictures and others."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pipelines.job import Enhance, Job, RgbImage, UpscaleJob, second_pass
from pipelines.pipeline import Pipeline
from pipelines.types import OnStep, Pixels, Progress
from pipelines.upscale.upscaler import Upscaler, resize


class Runner:
    """Draws jobs, second passes included, and enlarges pictures.

    Args:
        upscaler: the network that enlarges; Lanczos does where there is none.
    """

    def __init__(self, pipeline: Pipeline, upscaler: Upscaler | None = None) -> None:
        self._pipeline, self._upscaler = pipeline, upscaler

    def run(self, work: Job | UpscaleJob, watch: OnStep | None = None) -> list[Pixels]:
        """The pictures of a job, or the one that was enlarged: RGB uint8 (height, width, 3).

        Args:
            watch: told before each evaluation, and before each tile of an enlargement; what it raises ends the run.

        Raises:
            PipelineError: it cannot be drawn, or what was drawn is not finite.
        """
        if isinstance(work, UpscaleJob):
            return [self._enlarged(work, self._upscaler, watch)]
        drawn = self._pipeline.run(work, watch)
        if work.enhance is None:
            return drawn
        return [self._finished(work, work.enhance, index, first, watch) for index, first in enumerate(drawn)]

    def ladder(self, work: Job | UpscaleJob) -> tuple[float, ...]:
        """The sigmas a job's pictures went down last, the last of them 0; none for an enlargement."""
        if isinstance(work, UpscaleJob):
            return ()
        if work.enhance is None:
            return self._pipeline.ladder(work)
        return self._pipeline.ladder(second_pass(work, work.enhance, 0, RgbImage(0, 0, b"")))

    def _finished(
        self, job: Job, enhance: Enhance, index: int, first: Pixels, watch: OnStep | None
    ) -> Pixels:
        """The second pass over one of a job's pictures."""
        larger = self._enlarged(
            UpscaleJob(_picture(first), enhance.width, enhance.height),
            self._upscaler if enhance.network else None,
            _of(watch, index),
        )
        return self._pipeline.run(second_pass(job, enhance, index, _picture(larger)), _of(watch, index))[0]

    def _enlarged(self, work: UpscaleJob, upscaler: Upscaler | None, watch: OnStep | None) -> Pixels:
        def before_tile(done: int, of: int) -> None:
            if watch is not None:
                watch(Progress(0, done + 1, of, 0.0))

        pixels = np.frombuffer(work.picture.rgb, np.uint8)
        shaped = pixels.reshape(work.picture.height, work.picture.width, 3)
        return resize(shaped, work.width, work.height, upscaler, before_tile)


def _picture(pixels: Pixels) -> RgbImage:
    height, width, _ = pixels.shape
    return RgbImage(width, height, pixels.tobytes())


def _of(watch: OnStep | None, index: int) -> Callable[[Progress], None] | None:
    """The same watch, told of one image of many."""
    return None if watch is None else lambda progress: watch(replace(progress, image=index))
