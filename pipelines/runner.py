"""Everything that is loaded on one device: a diffusion model, and what upscales images."""

from collections.abc import Callable, Sequence

import numpy as np

from pipelines.device import translate_device_errors
from pipelines.job import Pass, PreviousPass, RgbImage, UpscaleJob, Work
from pipelines.pipeline import Pipeline
from pipelines.types import OnStep, Output, Pixels, Progress
from pipelines.upscale.upscaler import Upscaler, resize


class Runner:
    """Runs jobs with all their passes, and upscales.

    Args:
        upscaler: the upscaling network; without one Lanczos is used.
    """

    def __init__(self, pipeline: Pipeline, upscaler: Upscaler | None = None) -> None:
        self._pipeline, self._upscaler = pipeline, upscaler

    def run(self, work: Work, on_step: OnStep | None = None) -> Output:
        """Run a job.

        Args:
            on_step: called before each evaluation and each tile of an upscale; an exception it raises ends the run.

        Raises:
            DeviceLost: the device has failed for good.
            PipelineError: the job cannot be run, or its result is not finite.
        """
        with translate_device_errors(self._pipeline.device):
            if isinstance(work, UpscaleJob):
                return Output([self._upscale(work, on_step)], ())
            output = Output((), ())
            for pass_ in work.passes:
                previous = self._resize_previous(pass_, output.images, on_step)
                output = self._pipeline.run(work, on_step, pass_, previous)
            return output

    def _upscale(self, job: UpscaleJob, on_step: OnStep | None) -> Pixels:
        pixels = np.frombuffer(job.image.rgb, np.uint8).reshape(job.image.height, job.image.width, 3)
        return resize(pixels, job.width, job.height, self._upscaler, _report_tiles(0, on_step))

    def _resize_previous(
        self, pass_: Pass, images: Sequence[Pixels], on_step: OnStep | None
    ) -> Sequence[RgbImage]:
        """Return the previous pass's images at the size of a pass that starts from them."""
        if not isinstance(pass_.init, PreviousPass):
            return ()
        size, upscaler = (pass_.width, pass_.height), self._upscaler if pass_.init.network else None
        return [
            RgbImage(*size, resize(image, *size, upscaler, _report_tiles(index, on_step)).tobytes())
            for index, image in enumerate(images)
        ]


def _report_tiles(image: int, on_step: OnStep | None) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        if on_step is not None:
            on_step(Progress(image, done + 1, total, 0.0))

    return report
