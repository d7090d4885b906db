"""Loading and running models; with `device` the only module of the server that imports the torch half of pipelines.

Others import it inside functions, so that commands that need no torch start fast. The engine calls `load_runner` on the
device thread; the command line calls the other functions on the main thread.
"""

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from pipelines.adapters.control_file import detect_control
from pipelines.adapters.controlnet import plan_control
from pipelines.adapters.vibe import VibeEncoder, load_vibe
from pipelines.adapters.vibe_plan import plan_vibe
from pipelines.device import release_memory, translate_device_errors
from pipelines.errors import WeightsError
from pipelines.image.preview import DecodePreview
from pipelines.image.tiny_decoder import load_tiny_decoder, make_preview_decoder, plan_tiny_decoder
from pipelines.job import Job, Work
from pipelines.pass_limits import find_pass_limits
from pipelines.pipeline import Pipeline
from pipelines.runner import Runner
from pipelines.steps import Run
from pipelines.torch_build import describe_device
from pipelines.types import OnPreview
from pipelines.upscale.esrgan import plan_rrdbnet
from pipelines.upscale.upscaler import Upscaler, load_upscaler
from pipelines.weights.checkpoint import fingerprint, open_checkpoint
from pipelines.weights.detect import detect, detect_inpainting
from pipelines.weights.header import read_header
from pipelines.weights.load import Weights, choose_dtypes, load_weights, plan_run
from pipelines.weights.merge import merge_inpainting as merge_inpainting
from pipelines.weights.model_plan import ModelPlan, plan_model
from pipelines.weights.networks import TorchUNet, set_attention
from pipelines.weights.probe import check_inpainting_prediction, decide_prediction, probe_unet
from server.config.catalog import ModelEntry, VibeFiles
from server.config.settings import Settings, describe_lossy
from server.engine.device import check_device, has_own_memory, read_choices, read_memory, resolve_device
from server.engine.load_times import LoadTimes
from server.engine.model import ServedModel
from server.engine.resident import ResidentModels
from server.engine.threads import choose_threads
from server.engine.warm_up import list_common_sizes, warm_up

log = logging.getLogger("naiad")
LEAST_LIKENESS = 0.5
"""Correlation of a preview decoder's pixels with the VAE's, below which a warning is logged."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class LoadedRunner:
    """A loaded model's runner, and what is known about the model since."""

    runner: Runner
    model: ServedModel
    pipeline: Pipeline

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        return self.pipeline.size

    def move(self, place: Literal["device", "memory"], /) -> None:
        """Move the weights to the device or to CPU memory; the tensors that are left behind are freed."""
        device = self.pipeline.device
        with translate_device_errors(device):
            self.pipeline.move(device if place == "device" else torch.device("cpu"))
            release_memory(device)

    def free_memory(self) -> None:
        """Free what is kept for later jobs on the device."""
        self.runner.free_memory()

    def warm_up(self) -> None:
        """Compile and capture what the first requests are likely to need; on a CPU only what is compiled on request."""
        pipeline, defaults = self.pipeline, self.model.profile.defaults
        pipeline.compile_decoder(list_common_sizes(defaults))

        def draw(job: Job) -> None:
            with translate_device_errors(pipeline.device):
                pipeline.run(job)

        speed, step_cache = pipeline.weights.speed, pipeline.step_cache > 1
        if has_own_memory(pipeline.device) or speed.compile_unet:
            with pipeline.weights.unet.compile_passes():
                warm_up(draw, defaults, by_tokens=speed.graphs or speed.compile_unet, step_cache=step_cache)

    def prepare(self, work: Work, /) -> None:
        self.runner.prepare(work)

    def is_active(self, work: Work, /) -> bool:
        return self.runner.is_active(work)

    def activate(self, work: Work, /) -> None:
        self.runner.activate(work)

    def begin(self, work: Work, on_preview: OnPreview | None = None, /) -> Run:
        return self.runner.begin(work, on_preview)


def load_models(
    models: Sequence[ServedModel], settings: Settings, times: LoadTimes | None = None, warms_up: bool = True
) -> ResidentModels:
    """Load the first of the models, and the upscaler if there is one; the others are loaded when they are requested.

    Args:
        times: gets the times of the parts of loading the first.
        warms_up: whether the first is warmed up, which pays only if many requests follow.

    Raises what `load_runner` does, and `ConfigError` if torch has no kernels for the GPU or `speed` has what the
    device lacks.
    """
    device = resolve_device(settings.device)
    for remark in check_device(device, settings):
        log.warning("%s", remark)
    lossy = describe_lossy(settings)
    if lossy is not None:
        log.info("%s", lossy)
    times = times or LoadTimes()
    upscaler = _load_upscaler(models[0], device)
    times.finish("upscaler")

    def load(model: ServedModel) -> LoadedRunner:
        gc.collect()  # models that were dropped may be in cycles
        for path, known in model.file_fingerprints.items():
            if fingerprint(path) != known:
                raise WeightsError(path, "it has changed since the server was started; restart it")
        times.finish("hash")
        with translate_device_errors(torch.device(device)):
            return load_runner(model, settings, upscaler, times)

    parked_memory = settings.engine.parked_memory << 20
    is_shared = not has_own_memory(torch.device(device))
    budgets = settings.engine.device_memory << 20, parked_memory
    residents = ResidentModels(models, load, *budgets, is_shared, partial(read_memory, device))
    if warms_up:
        residents.warm_up()
        times.finish("warm-up")
    return residents


def _load_upscaler(model: ServedModel, device: str) -> Upscaler | None:
    """In float32, because half precision shows as bands in flat colors."""
    return None if model.upscaler is None else load_upscaler(model.upscaler, device)


def load_runner(
    model: ServedModel,
    settings: Settings,
    loaded_upscaler: Upscaler | None = None,
    times: LoadTimes | None = None,
) -> LoadedRunner:
    """Load a model, and its upscaler if it has one that is not loaded yet, onto the device of the settings.

    Raises `WeightsError` if a file cannot be used, and `ConfigError` if the device does not exist.
    """
    entry = model.entry
    torch.backends.cudnn.allow_tf32 = False  # float32 is used only where half precision is not enough
    device = resolve_device(settings.device)
    _set_threads(settings)
    upscaler = loaded_upscaler or _load_upscaler(model, device)  # first, because it fails fast
    tiny = None
    if entry.preview_decoder is not None:
        tiny = load_tiny_decoder(entry.preview_decoder, torch.device(device))
    times = times or LoadTimes()
    weights = load_entry(entry, settings, device, times.finish)
    if has_own_memory(torch.device(device)) or weights.offload is not None:
        log.info("%s: %s", entry.path.name, weights.memory)
    if weights.detection.is_assumed:
        detection = decide_prediction(weights, entry.path, entry.zsnr)
        log.info("%s: %s", entry.path.name, detection.evidence[-1])
        weights, model = replace(weights, detection=detection), model.with_detection(detection)
        if entry.inpainting is not None:
            detect_inpainting(entry.inpainting, detection)  # its prediction could not be compared before
    if entry.inpainting is not None and detect(entry.inpainting).is_assumed:
        check_inpainting_prediction(weights, entry.inpainting)
    times.finish("probe")
    sigma_max = model.profile.sigma_max if entry.sigma_max is None else entry.sigma_max
    memory = settings.engine.lora_memory << 20, settings.engine.control_memory << 20
    vibe = _load_vibe(entry.vibe, weights)
    max_rows = None if settings.engine.max_rows == "auto" else settings.engine.max_rows
    limits = find_pass_limits(weights, max_rows)
    options = settings.engine.batching, vibe, *memory, limits, settings.speed.step_cache
    pipeline = Pipeline(weights, sigma_max, *options)
    decode_preview = None if tiny is None else _prepare_tiny_decoder(tiny, pipeline, entry, settings)
    times.finish("prepare")
    return LoadedRunner(Runner(pipeline, upscaler, decode_preview), model, pipeline)


def _prepare_tiny_decoder(
    tiny: nn.Module, pipeline: Pipeline, entry: ModelEntry, settings: Settings
) -> DecodePreview:
    """Compare a tiny decoder with the model's VAE, use it for images if that is set, and return that of previews."""
    decode_preview = make_preview_decoder(tiny)
    likeness = pipeline.compare_preview(decode_preview)
    if entry.preview_decoder is not None and not likeness >= LEAST_LIKENESS:  # NaN if it decodes one color
        log.warning(
            "preview_decoder: %s does not decode as the VAE does (correlation %.2f); is it for another family?",
            entry.preview_decoder.name,
            likeness,
        )
    if settings.speed.decoder == "tiny":
        pipeline.use_tiny_decoder(tiny)
    return decode_preview


def _load_vibe(files: VibeFiles | None, weights: Weights) -> VibeEncoder | None:
    """Load a model's image adapter and install it in all its UNets; None without one."""
    if files is None:
        return None
    unets = [unet for unet in (weights.unet, weights.inpainting) if isinstance(unet, TorchUNet)]
    place = weights.device, weights.dtype
    return load_vibe(files.path, files.image_encoder, unets, *place, files.strength)


def load_entry(
    entry: ModelEntry, settings: Settings, device: str, on_part: Callable[[str], None] | None = None
) -> Weights:
    """Load the networks of a catalog's entry onto a device, as the settings say; `on_part` as in `load_weights`."""
    return load_weights(
        entry.path,
        device=device,
        dtype=DTYPES.get(settings.dtype),
        prediction=entry.prediction,
        zsnr=entry.zsnr,
        vae=entry.vae,
        text_encoders=entry.text_encoders,
        inpainting=entry.inpainting,
        clip_skip=entry.clip_skip,
        attention=settings.attention,
        speed=read_choices(settings),
        gigabytes=None if settings.speed.memory == "auto" else settings.speed.memory,
        on_part=on_part,
    )


def probe_model(model: ServedModel, settings: Settings) -> str:
    """Load a model and return what its network shows of its prediction.

    Raises `WeightsError` if that is another prediction than the detected one, or ambiguous.
    """
    entry = model.entry
    weights = load_entry(entry, settings, resolve_device(settings.device))
    found = weights.detection.prediction
    if found == "edm_v":
        return "EDM velocity prediction has timesteps of its own and cannot be probed"
    if weights.detection.is_assumed:
        return decide_prediction(weights, entry.path, entry.zsnr).evidence[-1]
    probe = probe_unet(weights, weights.unet)
    shown = probe.decide()
    if shown != found:
        reason = f"{model.detection.evidence[-1]}, but its network shows {shown or 'neither eps nor v'}"
        raise WeightsError(entry.path, f"{reason} ({probe})")
    return f"its network shows {found}, as detected ({probe})"


def check_model(model: ServedModel, settings: Settings | None = None) -> None:
    """Raise the `WeightsError` that loading a model would raise for its headers; no tensor is read.

    With settings, raise also the `UnusableSetting` or `ConfigError` that they would be the reason of.
    """
    entry = model.entry
    plan = plan_model(
        entry.path,
        entry.prediction,
        entry.zsnr,
        entry.vae,
        entry.text_encoders,
        entry.inpainting,
        entry.clip_skip,
    )
    if entry.preview_decoder is not None:
        plan_tiny_decoder(entry.preview_decoder)
    if entry.vibe is not None:
        plan_vibe(entry.vibe.path, entry.vibe.image_encoder, plan.unet.attention_shapes)
    for control in model.controls.usable.values():
        plan_control(detect_control(control.settings.path), plan.architecture.unet)
    if settings is not None:
        _check_run(plan, settings)


def _check_run(plan: ModelPlan, settings: Settings) -> None:
    """Check how a model would be run. What is free of the device's memory now need not be so at the start."""
    set_attention(plan.unet, settings.attention)
    if settings.speed.memory == "auto":
        return
    device = torch.device(resolve_device(settings.device))
    dtypes = choose_dtypes(plan.checkpoint, device, DTYPES.get(settings.dtype))
    plan_run(plan, device, dtypes, read_choices(settings), settings.speed.memory)


def _set_threads(settings: Settings) -> None:
    """Set the number of torch's threads on this thread, the one that runs the model."""
    threads = choose_threads(settings.threads)
    if threads is not None:
        torch.set_num_threads(threads)
    log.info("threads = %s: the CPU part uses %d", settings.threads, torch.get_num_threads())


def read_upscaler_scale(upscaler: Path) -> int:
    """Return the factor by which an upscaler enlarges the sides of an image, or raise `WeightsError`."""
    return plan_rrdbnet(read_header(upscaler)).config.scale


def describe_hardware(model: ServedModel, settings: Settings) -> dict[str, str | int]:
    """Return the device that a model runs on, torch's build, and what the networks compute in.

    Raises `ConfigError` if the device does not exist.
    """
    device = torch.device(resolve_device(settings.device))
    dtype, _ = choose_dtypes(open_checkpoint(model.entry.path), device, DTYPES.get(settings.dtype))
    facts: dict[str, str | int] = {"device": device.type, **describe_device(device)}
    if device.type == "cpu":
        facts["threads"] = choose_threads(settings.threads) or torch.get_num_threads()
    return facts | {"torch": torch.__version__, "dtype": str(dtype).removeprefix("torch.")}
