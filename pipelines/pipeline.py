"""One loaded model on one device: the whole way from a job to its pictures, as a story.

Usable alone as a library; the server's engine calls nothing else of the torch half.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import isinf

import torch
from torch import Tensor

from pipelines.image.color_match import match_colors
from pipelines.image.init_image import InitLatents, encode_init_image
from pipelines.image.overlay import apply_overlay
from pipelines.image.vae import VaeCodec
from pipelines.job import Job
from pipelines.plan import Plan, make_plan
from pipelines.sampling.batching import RowBatcher
from pipelines.sampling.denoise import Denoising, Estimator, denoise
from pipelines.sampling.noise import make_image_noise
from pipelines.sampling.prediction import PREDICTIONS, NoiseTable, edm, scaled_linear
from pipelines.sampling.smea import make_smea
from pipelines.text.encoding import PromptEmbeddings, PromptEncoder
from pipelines.types import BatchingMode, OnStep, Pixels, Progress
from pipelines.weights.load import Weights


class Pipeline:
    """Draws jobs.

    Args:
        weights: the loaded networks; what they predict was read from their file.
        sigma_max: a finite stand-in for infinite noise, or None for the exact step.
        batching: see conductor.py.
    """

    def __init__(
        self,
        weights: Weights,
        sigma_max: float | None = None,
        batching: BatchingMode = "exact",
    ) -> None:
        self.weights = weights
        self.table = build_noise_table(weights.detection.prediction, weights.detection.zsnr, sigma_max)
        self._device, self._to_x0 = weights.device, PREDICTIONS[weights.detection.prediction]
        self._text = PromptEncoder(weights.text_encoders, weights.device)
        self._conductor = RowBatcher(weights.unet, self.table, weights.device, weights.dtype, batching)
        self._inpainter = (
            None
            if weights.inpainting is None
            else RowBatcher(weights.inpainting, self.table, weights.device, weights.dtype, batching)
        )
        self._darkroom = VaeCodec(weights.vae, weights.architecture.latent_scale, weights.vae_dtype)
        self._noise_ahead = ThreadPoolExecutor(1, thread_name_prefix="noise")

    @torch.inference_mode()
    def run(self, job: Job, watch: OnStep | None = None) -> list[Pixels]:
        """Draw a job's pictures, RGB uint8 (height, width, 3), in the order of its seeds.

        Args:
            watch: told before each evaluation; whatever it raises (Cancelled) ends the run.

        Raises:
            PipelineError: the job cannot be drawn, or what was drawn is not finite.
        """
        pictures = [self._darkroom.decode(latents) for latents in self.generate_latents(job, watch)]
        if job.source is None:
            return pictures
        return [apply_overlay(match_colors(drawn, job.source), job.source) for drawn in pictures]

    def ladder(self, job: Job) -> tuple[float, ...]:
        """The sigmas a job goes down, the last of them 0."""
        return tuple(make_plan(job, self.table).sigmas)

    @torch.inference_mode()
    def generate_latents(self, job: Job, watch: OnStep | None = None) -> list[Tensor]:
        """The first half of `run`: clean latents (4, height / 8, width / 8) for each seed."""
        plan = make_plan(job, self.table)
        texts = self._text.encode(job.prompts)
        origin = self._origin(job)
        trajectories = [self._trajectory(job, plan, texts, origin, k) for k in range(len(job.seeds))]
        shown = origin is not None and origin.inpaint_channels is not None
        conductor = self._inpainter if shown and self._inpainter else self._conductor
        return conductor.run(trajectories, _reporter(plan, watch))

    def _origin(self, job: Job) -> InitLatents | None:
        if job.source is None:
            return None
        inpaints = self._inpainter is not None and job.source.mask is not None
        return encode_init_image(job.source, self._darkroom, inpaints, self._device)

    def _trajectory(
        self, job: Job, plan: Plan, texts: PromptEmbeddings, origin: InitLatents | None, image: int
    ) -> Denoising:
        noise = make_image_noise(
            job.seeds[image],
            (4, *job.latent_size),
            plan.sampler,
            plan.sigmas,
            self.table,
            plan.brownian,
            self._noise_ahead,
            self._device,
        )
        looks = make_smea(job.smea, job.latent_size, plan.sigmas, self._device)
        estimator = Estimator(plan, texts, self._size_ids(job), self._to_x0, smea=looks)
        first = plan.sigmas[0]
        x = noise.initial if isinf(first) else noise.initial * first
        if origin is not None:
            kept = origin.make_latent_blend(noise.initial, plan.sigmas)
            estimator = replace(estimator, inpaint_channels=origin.inpaint_channels, blend=kept)
            x = x if isinf(first) else origin.add_noise(image) + x
        return denoise(estimator, x, noise)

    def _size_ids(self, job: Job) -> tuple[float, ...] | None:
        """SDXL is told the original size, the crop and the target size: whole pictures, never upscaled."""
        if self.weights.architecture.family != "sdxl":
            return None
        return (job.height, job.width, 0, 0, job.height, job.width)


def build_noise_table(prediction: str, zsnr: bool, sigma_max: float | None = None) -> NoiseTable:
    """The noise table of a kind of network; `sigma_max` moves where its ladders start."""
    table = edm() if prediction == "edm_v" else scaled_linear(zsnr)
    return table if sigma_max is None or isinf(sigma_max) else table.starting_at(sigma_max)


def _reporter(plan: Plan, watch: OnStep | None) -> Callable[[int, float], None]:
    """Translate sigmas into steps: the rungs at or above the one being evaluated have been reached."""

    def report(image: int, sigma: float) -> None:
        if watch is not None:
            rungs = plan.sigmas[:-1]
            step = max(1, sum(rung >= sigma for rung in rungs))
            watch(Progress(image, step, len(rungs), sigma))

    return report
