"""diffusers' pipeline on a loaded model's own weights: the other side of comparisons."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers import (
    EulerDiscreteScheduler,  # pyright: ignore[reportPrivateImportUsage]
    StableDiffusionXLPipeline,  # pyright: ignore[reportPrivateImportUsage]
    UNet2DConditionModel,  # pyright: ignore[reportPrivateImportUsage]
)
from torch import nn

from pipelines.weights.load import Weights


def build_scheduler() -> EulerDiscreteScheduler:
    """Return diffusers' scheduler for Euler steps of a model with v-prediction and zero terminal SNR."""
    return EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def build_diffusers_unet(weights: Weights) -> nn.Module:
    """Return diffusers' UNet with the same tensors."""
    with torch.device("meta"):
        unet = cast("Any", UNet2DConditionModel)(**dict(weights.architecture.unet)).eval()
    unet.load_state_dict(cast("Any", weights.unet).module.state_dict(), assign=True)
    return unet.requires_grad_(False)


def build_pipeline(weights: Weights, tokenizers: Sequence[object] = ()) -> Any:
    """Return diffusers' pipeline; without tokenizers it takes prompt embeddings alone."""
    encoders = [cast("Any", encoder).module for encoder in weights.text_encoders] if tokenizers else []
    first, second = (*encoders, None, None)[:2]
    tokenizer, other = (*tokenizers, None, None)[:2]
    pipeline = cast("Any", StableDiffusionXLPipeline)(
        vae=cast("Any", weights.vae).module,
        unet=build_diffusers_unet(weights),
        scheduler=build_scheduler(),
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=other,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
