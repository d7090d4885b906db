"""One loaded diffusion model on one device: from a job's pass to its images. Usable alone as a library."""

import gc
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import isinf

import torch
from torch import Tensor, nn

from pipelines.adapters.control_map import ControlMap, RowControl, RowControls
from pipelines.adapters.control_residency import ControlResidency
from pipelines.adapters.residency import LoraResidency
from pipelines.adapters.vibe import VibeEncoder
from pipelines.cost import estimate_passes
from pipelines.device import compute_parts, release_memory, translate_device_errors
from pipelines.errors import NotFinite, PipelineError
from pipelines.image.finishing import finish_image
from pipelines.image.init_image import InitLatents, encode_image, encode_init_image
from pipelines.image.preview import DecodePreview, correlate, fit_preview, make_sample
from pipelines.image.tiny_decoder import TinyVae
from pipelines.image.vae import VaeCodec
from pipelines.job import (
    SEED_MODULUS,
    Control,
    EncodedVibe,
    InitImage,
    Job,
    Pass,
    RgbImage,
    VibeJob,
)
from pipelines.pass_limits import PassLimits
from pipelines.plan import Plan, make_plan
from pipelines.previewer import PreviewRun
from pipelines.sampling.batching import RowBatcher
from pipelines.sampling.denoise import Estimator, RowCoroutine, Rows, denoise
from pipelines.sampling.noise import make_image_noise
from pipelines.sampling.prediction import PREDICTIONS, build_noise_table
from pipelines.sampling.smea import make_smea
from pipelines.sampling.step_cache import make_step_cache
from pipelines.steps import Part, PartCoroutine, Step, StepCoroutine, run_parts, run_steps
from pipelines.text.encoding import PromptEmbeddings, PromptEncoder
from pipelines.types import BatchingMode, OnStep, Output, Pixels, Progress, Size
from pipelines.weights.families import FAMILIES
from pipelines.weights.load import Weights

LORA_MEMORY = 8 << 30
"""Bytes; SDXL's weights in half precision, unchanged and with the next job's LoRAs, fit twice into 10 GB."""
CONTROL_MEMORY = 6 << 30
"""Bytes; a ControlNet for SDXL has 2.5 GB in half precision."""


@dataclass(frozen=True, slots=True)
class PassInputs:
    """What the images of a pass share.

    Attributes:
        init: the init image's latents; None without one, and where every image starts from its own one.
        batcher: evaluates the UNet that the pass uses.
        steps_before: steps of the job's passes before this one.
        before, share: the shares of the work for an image that the passes before are, and that this one is.
    """

    pass_: Pass
    plan: Plan
    embeddings: PromptEmbeddings
    init: InitLatents | None
    controls: RowControls
    batcher: RowBatcher
    steps_before: int = 0
    before: float = 0.0
    share: float = 1.0

    def show_progress(self, image: int, step: int, sigma: float) -> Progress:
        """Return the progress of an image before a step of the pass."""
        return Progress(image, step, self.plan.steps, sigma, self.before, self.share)


class Pipeline:
    """Generates images.

    Args:
        sigma_max: a finite stand-in for infinite noise, or None for the exact step.
        batching: whether `run` evaluates the images of a job on their own ("exact") or together ("shared").
        vibe: encodes reference images; None without an adapter for them.
        lora_memory: bytes of CPU memory for what switching LoRAs needs, see adapters/residency.py.
        control_memory: bytes of the device's memory for ControlNets that the job that runs does not use.
        pass_limits: how much images may have together to share a pass.
        step_cache: which steps are full, see sampling/step_cache.py; 1 for all.
    """

    def __init__(
        self,
        weights: Weights,
        sigma_max: float | None = None,
        batching: BatchingMode = "exact",
        vibe: VibeEncoder | None = None,
        lora_memory: int = LORA_MEMORY,
        control_memory: int = CONTROL_MEMORY,
        pass_limits: PassLimits | None = None,
        step_cache: int = 1,
    ) -> None:
        self.weights, self.vibe = weights, vibe
        self.table = build_noise_table(weights.detection, sigma_max)
        self.device, self._to_x0 = weights.device, PREDICTIONS[weights.detection.prediction]
        self._prompts = PromptEncoder(weights.text_encoders, weights.device)
        self._limits = pass_limits or PassLimits()
        args = (self.table, weights.device, weights.dtype, self._limits.unet)
        self._batching, self.step_cache = batching, step_cache
        self._batcher = RowBatcher(weights.unet, *args)
        self._inpaint_batcher = None if weights.inpainting is None else RowBatcher(weights.inpainting, *args)
        self._loras = LoraResidency(weights.parts, weights.detection.family, lora_memory)
        self._controls = ControlResidency(weights, control_memory)
        self._vae = VaeCodec(
            weights.vae, weights.architecture.latent_scale, weights.vae_dtype, weights.memory.tiling
        )
        self._noise_thread = ThreadPoolExecutor(1, thread_name_prefix="noise")

    def use_tiny_decoder(self, decoder: nn.Module) -> None:
        """Decode images from now on with a tiny decoder instead of the VAE's."""
        weights = self.weights
        vae = TinyVae(weights.vae, decoder, weights.architecture.latent_scale)
        self._vae = VaeCodec(vae, weights.architecture.latent_scale, weights.vae_dtype, weights.memory.tiling)

    def compile_decoder(self, sizes: Iterable[Size]) -> None:
        """Compile the VAE's decoder for images of some sizes, if that was chosen; takes minutes."""
        with torch.inference_mode():
            self._vae.compile_decoder((height // 8, width // 8) for width, height in sizes)

    @property
    def size(self) -> int:
        """Bytes of the weights, and of the ControlNets that are loaded."""
        own = sum(tensor.nbytes for module in self._list_modules() for tensor in module.state_dict().values())
        return own + self._controls.size

    @property
    def lora_swaps(self) -> int:
        """How often a job needed other LoRAs than the one before it."""
        return self._loras.swaps

    def move(self, device: torch.device) -> None:
        """Move the weights; the pipeline runs only while they are on its own device. ControlNets are freed."""
        self._controls.drop()
        self._drop_graphs()
        for module in self._list_modules():
            self.weights.move(module, device)

    def free_memory(self) -> None:
        """Free what is kept on the device and can be made again: ControlNets, and what was computed of prompts."""
        self._controls.free_unused()
        self._drop_graphs()
        self._prompts.clear()
        for batcher in (self._batcher, self._inpaint_batcher):
            if batcher is not None:
                batcher.free_memory()
        gc.collect()
        release_memory(self.device)

    def _drop_graphs(self) -> None:
        for unet in (self.weights.unet, self.weights.inpainting):
            if unet is not None:
                unet.drop_graphs()

    def _list_modules(self) -> list[nn.Module]:
        parts = [planned.part.module for planned in self.weights.parts]
        return parts if self.vibe is None else [*parts, *self.vibe.modules]

    def prepare(self, job: Job) -> None:
        """Begin to read the LoRAs of a job that will run next; returns at once, on any thread."""
        self._loras.prepare(job.loras)

    def is_active(self, job: Job) -> bool:
        """Return whether the LoRAs of a job are applied, and no others."""
        return self._loras.is_active(job.loras)

    def activate(self, job: Job) -> None:
        """Apply the LoRAs of a job, and no others. They must be active whenever a step of the job is taken."""
        if self.weights.offload is not None and not self._loras.is_active(job.loras):
            self.weights.offload.clear()  # a layer may have been copied ahead
        self._loras.activate(job.loras)

    @torch.inference_mode()
    def begin_pass(self, job: Job, number: int = 0) -> PassInputs:
        """Encode what the images share in pass `number` of a job."""
        return run_parts(self.encode_pass(job, number))

    @torch.inference_mode()
    def encode_pass(self, job: Job, number: int) -> PartCoroutine[PassInputs]:
        """Encode likewise, part by part; the job must be active whenever a part is computed."""
        *earlier, plan = (make_plan(job, each, self.table) for each in job.passes[: number + 1])
        pass_, costs = job.passes[number], estimate_passes(job)
        before, share = sum(costs[:number]) / sum(costs), costs[number] / sum(costs)
        steps_before = sum(each.steps for each in earlier)
        embeddings: PromptEmbeddings = yield Part(partial(self._encode_prompts, job))
        if job.vibes:
            vibes = yield Part(partial(self._require_vibe().prepare, job.vibes))
            embeddings = embeddings.with_vibes(*vibes)
        init, batcher = None, self._batcher
        if isinstance(pass_.init, InitImage):
            inpaints = self._inpaint_batcher is not None
            init = yield from encode_init_image(pass_.init, self._vae, inpaints, self.device)
            if init.inpaint_channels is not None and self._inpaint_batcher is not None:
                batcher = self._inpaint_batcher
        controls: RowControls = ()
        if job.controls:
            controls = yield Part(partial(self._prepare_controls, job.controls, pass_))
        return PassInputs(pass_, plan, embeddings, init, controls, batcher, steps_before, before, share)

    def _encode_prompts(self, job: Job) -> PromptEmbeddings:
        self._prompts.adapters = self._loras.text_key
        return self._prompts.encode(job.prompts)

    def generate_image(
        self,
        inputs: PassInputs,
        index: int,
        previous: RgbImage | None = None,
        previews: PreviewRun | None = None,
    ) -> StepCoroutine[Pixels]:
        """Generate image `index` of a pass, except for what `finish_image` does.

        Args:
            previous: the image that a pass with `PreviousPass` starts from, at its own size.
            previews: shown every estimate; no pixel depends on it.

        Raises:
            PipelineError: the result is not finite.
        """
        latents = yield from self.denoise_image(inputs, index, previous, previews)
        progress, key = inputs.show_progress(index, inputs.plan.steps, 0.0), (id(self._vae), latents.shape)
        if self._vae.tiling.applies(latents):
            return (yield from self._decode_tiles(latents, progress))
        share = min(1.0, latents.shape[-2] * latents.shape[-1] / self._limits.vae)
        return (yield Step(progress, self._decode, latents, key, share, "decode"))

    @torch.inference_mode()
    def denoise_image(
        self,
        inputs: PassInputs,
        index: int,
        previous: RgbImage | None = None,
        previews: PreviewRun | None = None,
    ) -> StepCoroutine[Tensor]:
        """Generate an image likewise up to its clean latents, (4, height / 8, width / 8)."""
        init = inputs.init
        if previous is not None:
            parts = encode_image(previous, self._vae, self.device)
            progress = inputs.show_progress(index, 1, 0.0)
            init = yield from compute_parts(self.device, parts, lambda _: progress, "encode")
        with closing(self._start(inputs, index, init, previews)) as trajectory:
            outputs: Sequence[Tensor] | None = None
            while True:
                try:
                    rows = trajectory.send(outputs)  # pyright: ignore[reportArgumentType]  # None starts it
                except StopIteration as stop:
                    return stop.value
                outputs = yield self._make_step(inputs, index, rows)

    def _make_step(self, inputs: PassInputs, index: int, rows: Rows) -> Step:
        sigma, batcher = rows[0].sampler_sigma, inputs.batcher
        progress = inputs.show_progress(index, inputs.plan.find_step(sigma), sigma)
        key, share = batcher.make_key(rows), batcher.find_share(rows)
        return Step(progress, batcher.evaluate_images, rows, key, share, rows=len(rows))

    @torch.inference_mode()
    def _decode(self, images: Sequence[Tensor]) -> list[Pixels]:
        with translate_device_errors(self.device), self._add_advice():
            return self._vae.decode_images(torch.stack(list(images)))

    @torch.inference_mode()
    def _decode_tiles(self, latents: Tensor, progress: Progress) -> StepCoroutine[Pixels]:
        """Decode latents tile by tile, so that other images need not wait for all of a large one."""
        with self._add_advice():
            tiles = self._vae.decode_tiles(latents[None])
            (image,) = yield from compute_parts(self.device, tiles, lambda _: progress, "decode")
        return image

    @contextmanager
    def _add_advice(self) -> Generator[None]:
        try:
            yield
        except NotFinite as error:
            raise NotFinite(f"{error}; {self._advise()}") from error

    def _advise(self) -> str:
        """Return what to do if the networks' numbers were too large."""
        has_loras = not self._loras.is_active(())
        advice = f"lower scale{' or the strengths of the LoRAs' if has_loras else ''}"
        if self.weights.dtype == torch.float32:
            return advice
        wider = "bfloat16" if self.weights.dtype == torch.float16 else "float32"
        return f'{advice}, or set dtype = "{wider}" in the server\'s settings'

    def run(self, job: Job, on_step: OnStep | None = None) -> Output:
        """Run a job of one pass.

        Args:
            on_step: called before each step; an exception it raises (Cancelled) ends the run.

        Raises:
            PipelineError: the job cannot be run, or its result is not finite.
        """
        self.activate(job)
        inputs = self.begin_pass(job)
        images = [self.generate_image(inputs, index) for index in range(len(inputs.pass_.seeds))]
        decoded = run_steps(images, on_step, self._batching == "shared")
        return Output([finish_image(image, inputs.pass_) for image in decoded], inputs.plan.sigmas)

    def generate_latents(self, job: Job, on_step: OnStep | None = None) -> list[Tensor]:
        """Run a job's first pass up to the clean latents, (4, height / 8, width / 8) for each seed."""
        self.activate(job)
        inputs = self.begin_pass(job)
        images = [self.denoise_image(inputs, index) for index in range(len(inputs.pass_.seeds))]
        return run_steps(images, on_step, self._batching == "shared")

    @torch.inference_mode()
    def encode_vibe(self, job: VibeJob) -> EncodedVibe:
        """Return a reference image's tokens; raise PipelineError without an adapter."""
        return self._require_vibe().encode(job.image, job.information_extracted)

    def _require_vibe(self) -> VibeEncoder:
        if self.vibe is None:
            raise PipelineError("the model has no image adapter for vibe transfer")
        return self.vibe

    @torch.inference_mode()
    def fit_preview(self) -> DecodePreview:
        """Return a decoder for previews, fitted to the model's VAE."""
        return fit_preview(lambda latents: self._vae.decode(latents.to(self.device)), self.device)

    @torch.inference_mode()
    def compare_preview(self, decode_preview: DecodePreview) -> float:
        """Return the correlation of a preview decoder's pixels with those of the model's VAE."""
        latents = make_sample().to(self.device)
        preview, image = decode_preview(latents).cpu(), torch.tensor(self._vae.decode(latents))
        return correlate(preview, image)

    def _prepare_controls(self, controls: Sequence[Control], pass_: Pass) -> RowControls:
        """Load the ControlNets of a job, and fit their maps to a pass; those of strength 0 are not used."""
        used = [control for control in controls if control.strength]
        size, place = (pass_.width, pass_.height), (self.device, self.weights.dtype)
        return tuple(
            RowControl(
                network,
                ControlMap(network, control.image, size, *place),
                control.strength,
                control.mode,
                control.start,
                control.end,
            )
            for control, network in zip(used, self._controls.activate(used), strict=True)
        )

    def _start(
        self, inputs: PassInputs, index: int, init: InitLatents | None, previews: PreviewRun | None
    ) -> RowCoroutine:
        """Return the denoising coroutine of one image."""
        pass_, plan = inputs.pass_, inputs.plan
        seed, shape = pass_.seeds[index], (4, *pass_.latent_size)
        noise = make_image_noise(
            seed, shape, plan.sampler, plan.sigmas, self.table, plan.brownian, self._noise_thread, self.device
        )
        smea = make_smea(pass_.smea, pass_.latent_size, plan.sigmas, self.device)
        on_estimate = None if previews is None else partial(_show, previews, inputs, index)
        estimator = Estimator(
            plan,
            inputs.embeddings,
            self._size_ids(pass_),
            self._to_x0,
            smea=smea,
            controls=inputs.controls,
            on_estimate=on_estimate,
            step_cache=make_step_cache(plan, self.step_cache),
        )
        first = plan.sigmas[0]
        x = noise.initial if isinf(first) else noise.initial * first
        if init is not None:
            blend = init.latent_blend(noise.initial, plan.sigmas)
            estimator = replace(estimator, inpaint_channels=init.inpaint_channels, blend=blend)
            noise_seed = (pass_.noise_seed + index) % SEED_MODULUS
            x = x if isinf(first) else init.add_noise(pass_.noise, noise_seed) + x
        return denoise(estimator, x, noise)

    def _size_ids(self, pass_: Pass) -> tuple[float, ...] | None:
        """SDXL's original size, crop and target size: always those of an uncropped image that was never resized."""
        if not FAMILIES[self.weights.architecture.family].takes_size_ids:
            return None
        return (pass_.height, pass_.width, 0, 0, pass_.height, pass_.width)


def _show(previews: PreviewRun, inputs: PassInputs, index: int, estimate: Tensor, sigma: float) -> None:
    previews.show(index, estimate, sigma, inputs.steps_before + inputs.plan.find_step(sigma))
