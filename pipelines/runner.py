"""Everything that is loaded on one device: a diffusion model, and what upscales images."""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from pipelines.device import translate_device_errors
from pipelines.image.preview import DecodePreview
from pipelines.job import Job, Pass, PreviousPass, RgbImage, UpscaleJob, VibeJob, Work
from pipelines.pipeline import Pipeline
from pipelines.previewer import Previewer, PreviewRun
from pipelines.types import OnPreview, OnStep, Output, Pixels, Progress
from pipelines.upscale.upscaler import Upscaler, resize


class Runner:
    """Runs jobs with all their passes, and upscales.

    Args:
        upscaler: the upscaling network; without one Lanczos is used.
        decode_preview: decodes previews; without one a linear map that is fitted to the model's VAE does.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        upscaler: Upscaler | None = None,
        decode_preview: DecodePreview | None = None,
    ) -> None:
        self._pipeline, self._upscaler, self._decode_preview = pipeline, upscaler, decode_preview

    @cached_property
    def previewer(self) -> Previewer:
        """What makes previews of the model's images."""
        decode = self._decode_preview or self._pipeline.fit_preview()
        return Previewer(decode, self._pipeline.device)

    def prepare(self, work: Work) -> None:
        """Begin what the next job needs and can be done while another one runs; returns at once, on any thread."""
        if isinstance(work, Job):
            self._pipeline.prepare(work)

    def run(self, work: Work, on_step: OnStep | None = None, on_preview: OnPreview | None = None) -> Output:
        """Run a job.

        Args:
            on_step: called before each evaluation and each tile of an upscale; an exception it raises ends the run.
            on_preview: called with previews of generated images, as many as their cost allows.

        Raises:
            DeviceLost: the device has failed for good.
            PipelineError: the job cannot be run, or its result is not finite.
        """
        with translate_device_errors(self._pipeline.device):
            if isinstance(work, UpscaleJob):
                return Output([self._upscale(work, on_step)], ())
            if isinstance(work, VibeJob):
                return Output((), (), self._pipeline.encode_vibe(work))
            output, images = Output((), ()), len(work.passes[0].seeds)
            previews = None if on_preview is None else PreviewRun(self.previewer, images, on_preview)
            for pass_ in work.passes:
                previous = self._resize_previous(pass_, output.images, on_step)
                output = self._pipeline.run(work, on_step, pass_, previous, previews)
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
