"""Everything that is loaded on one device: a diffusion model, and what upscales images."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from pipelines.device import compute_parts, make_step, translate_device_errors, translate_memory_errors
from pipelines.image.finishing import finish_image, needs_finishing
from pipelines.image.preview import DecodePreview
from pipelines.job import Job, PreviousPass, RgbImage, UpscaleJob, VibeJob, Work
from pipelines.pipeline import PassInputs, Pipeline
from pipelines.previewer import Previewer, PreviewRun
from pipelines.steps import Part, PartCoroutine, Run, StepCoroutine
from pipelines.types import OnPreview, OnStep, Output, Pixels, Progress
from pipelines.upscale.upscaler import Upscaler, enlarge_tiles, resize_lanczos, resize_tiles


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

    def is_active(self, work: Work) -> bool:
        """Return whether the weights are in the state that a job's steps need; on any thread."""
        return not isinstance(work, Job) or self._pipeline.is_active(work)

    def activate(self, work: Work) -> None:
        """Bring the weights into the state that a job's steps need.

        Raises what `begin` does.
        """
        if isinstance(work, Job):
            with translate_device_errors(self._pipeline.device):
                self._pipeline.activate(work)

    def free_memory(self) -> None:
        """Free what is kept for later jobs on the device."""
        with translate_device_errors(self._pipeline.device):
            self._pipeline.free_memory()

    def begin(self, work: Work, on_preview: OnPreview | None = None) -> Run:
        """Begin a job. Its steps are taken while it is active; they raise what is listed here.

        Args:
            on_preview: called with previews of generated images, as many as their cost allows.

        Raises:
            DeviceLost: the device has failed for good.
            OutOfMemory: the step can be taken again, after memory was freed.
            PipelineError: the job cannot be run, or its result is not finite.
        """
        if isinstance(work, UpscaleJob):
            fit = partial(_fit, work.width, work.height)
            return Run([self._guard(self._upscale(work))], lambda images: Output(images, ()), fit)
        if isinstance(work, VibeJob):
            return Run([self._guard(self._encode_vibe(work))], lambda vibes: Output((), (), vibes[0]))
        count = len(work.passes[0].seeds)
        with translate_device_errors(self._pipeline.device):
            previews = None if on_preview is None else PreviewRun(self.previewer, count, on_preview)
        run = JobRun(self._pipeline, self._upscaler, work, previews)
        finish_image = run.finish_image if needs_finishing(work.passes[-1]) else None
        return Run([self._guard(run.generate(index)) for index in range(count)], run.finish, finish_image)

    def run(self, work: Work, on_step: OnStep | None = None, on_preview: OnPreview | None = None) -> Output:
        """Run a job to its end.

        Args:
            on_step: called before each step; an exception it raises ends the run.
            on_preview: as for `begin`.
        """
        self.activate(work)
        run = self.begin(work, on_preview)
        with translate_device_errors(self._pipeline.device):
            return run.complete(on_step)

    def _upscale(self, job: UpscaleJob) -> StepCoroutine[Pixels]:
        pixels = np.frombuffer(job.image.rgb, np.uint8).reshape(job.image.height, job.image.width, 3)
        tiles = enlarge_tiles(pixels, job.width, job.height, self._upscaler)
        show = partial(_show_part, Progress(0, 1, 1, 0.0))
        return compute_parts(self._pipeline.device, tiles, show, "upscale")

    def _encode_vibe(self, job: VibeJob) -> StepCoroutine[Any]:
        progress, encode = Progress(0, 1, 1, 0.0), partial(self._pipeline.encode_vibe, job)
        return (yield make_step(self._pipeline.device, progress, encode, "encode"))

    def _guard(self, coroutine: StepCoroutine[Any]) -> StepCoroutine[Any]:
        """Return the same coroutine with the device's errors translated that it raises between two steps."""
        with translate_device_errors(self._pipeline.device):
            return (yield from coroutine)


class JobRun:
    """A job's images, each of which goes through all passes, and what they share."""

    def __init__(
        self, pipeline: Pipeline, upscaler: Upscaler | None, job: Job, previews: PreviewRun | None
    ) -> None:
        self._pipeline, self._upscaler, self._job, self._previews = pipeline, upscaler, job, previews
        self._inputs: list[PassInputs] = []  # of the passes that any image has reached
        self._encoding: PartCoroutine[PassInputs]  # of the next one
        self._part: Part | None = None

    def generate(self, index: int) -> StepCoroutine[Pixels]:
        """Generate image `index`, except for what `finish_image` does."""
        previous: RgbImage | None = None
        image: Pixels | None = None
        for number, pass_ in enumerate(self._job.passes):
            inputs = yield from self._find_inputs(number, index)
            if image is not None and isinstance(pass_.init, PreviousPass):
                upscaler = self._upscaler if pass_.init.network else None
                image = finish_image(image, self._job.passes[number - 1])
                tiles = resize_tiles(image, pass_.width, pass_.height, upscaler)
                progress = Progress(index, 1, 1, 0.0, inputs.before, 0.0)
                resized = yield from compute_parts(
                    self._pipeline.device, tiles, partial(_show_part, progress), "upscale"
                )
                previous = RgbImage(pass_.width, pass_.height, resized.tobytes())
            image = yield from self._pipeline.generate_image(inputs, index, previous, self._previews)
        assert image is not None
        return image

    def finish_image(self, image: Pixels) -> Pixels:
        """Return a generated image in its init image's colors and under its overlay; on any thread.

        Raises OutOfMemory if there is too little.
        """
        with translate_memory_errors():
            return finish_image(image, self._job.passes[-1])

    def finish(self, images: Sequence[Pixels]) -> Output:
        """Return the job's output."""
        return Output(images, self._inputs[-1].plan.sigmas)

    def _find_inputs(self, number: int, index: int) -> StepCoroutine[PassInputs]:
        """Return what the images of a pass share; the first image to reach the pass encodes it."""
        while number == len(self._inputs):
            before = sum(inputs.share for inputs in self._inputs)
            progress = Progress(index, 1, self._job.steps, 0.0, before, 0.0)
            yield make_step(self._pipeline.device, progress, partial(self._encode_part, number), "encode")
        return self._inputs[number]

    def _encode_part(self, number: int) -> None:
        """Compute the next part of a pass's inputs, unless the last one was computed for another image just now."""
        if number < len(self._inputs):
            return
        if self._part is None:
            self._encoding = self._pipeline.encode_pass(self._job, number)
            self._part = next(self._encoding)
        computed = self._part.compute()  # which may run out of memory and be done again
        self._part = None
        try:
            self._part = self._encoding.send(computed)
        except StopIteration as stop:
            self._inputs.append(stop.value)


def _fit(width: int, height: int, image: Pixels) -> Pixels:
    """Return an image that is upscaled by the network, if there is one, at the size that was asked for."""
    with translate_memory_errors():
        return resize_lanczos(image, width, height)


def _show_part(progress: Progress, part: Part) -> Progress:
    """Return the progress before a part."""
    return replace(progress, step=part.number, steps=part.total)
