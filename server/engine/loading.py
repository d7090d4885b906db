"""The one module of the server that reaches the torch half of pipelines; imported late, on the device thread."""

from pathlib import Path

import torch

from pipelines.pipeline import Pipeline
from pipelines.runner import Runner
from pipelines.upscale.esrgan import detect_rrdbnet
from pipelines.upscale.upscaler import load_upscaler
from pipelines.weights.checkpoint import read_header
from pipelines.weights.load import load_weights
from pipelines.weights.merge import merge_inpainting as merge_inpainting
from server.config.settings import Settings
from server.config.toml import ConfigError
from server.engine.model import ServedModel

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load_runner(served: ServedModel, settings: Settings) -> Runner:
    """Load what is served onto the settings' device.

    Raises:
        WeightsError: the file cannot serve.
        ConfigError: the device is not there.
    """
    entry, identity = served.entry, served.detection
    torch.backends.cudnn.allow_tf32 = False  # float32 is asked for where half precision is not enough
    # first, as it is quick to refuse; in float32, since half precision shows as bands in flat colours
    upscaler = (
        None if served.upscaler is None else load_upscaler(served.upscaler, resolve_device(settings.device))
    )
    weights = load_weights(
        entry.path,
        device=resolve_device(settings.device),
        dtype=DTYPES.get(settings.dtype),
        prediction=identity.prediction,
        zsnr=identity.zsnr,
        vae=entry.vae,
        text_encoders=entry.text_encoders,
        inpainting=entry.inpainting,
        attention=settings.attention,
    )
    sigma_max = served.profile.sigma_max if entry.sigma_max is None else entry.sigma_max
    return Runner(Pipeline(weights, sigma_max, settings.engine.batching), upscaler)


def read_upscaler_scale(upscaler: Path) -> int:
    """How many times an upscaler's file makes pictures wider; WeightsError if it is none."""
    return detect_rrdbnet(read_header(upscaler))[0].scale


def resolve_device(name: str) -> str:
    """The device a setting means: with "auto" the GPU there is, else the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):
        raise ConfigError(f"device = {name!r} is not there; cpu always is") from None
    return name
