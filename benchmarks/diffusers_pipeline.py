"""diffusers' pipeline on a loaded model's own weights: the other side of comparisons."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from diffusers import (
    AutoencoderKL,  # pyright: ignore[reportPrivateImportUsage]
    EulerDiscreteScheduler,  # pyright: ignore[reportPrivateImportUsage]
    StableDiffusionXLPipeline,  # pyright: ignore[reportPrivateImportUsage]
    UNet2DConditionModel,  # pyright: ignore[reportPrivateImportUsage]
)
from torch import Tensor, nn

from pipelines.job import Prompts
from pipelines.text.encoding import Conditioning, PromptEncoder
from pipelines.types import Size
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
    return _build(UNet2DConditionModel, weights.architecture.unet, weights.unet)


def build_diffusers_vae(weights: Weights) -> nn.Module:
    """Return diffusers' VAE with the same tensors."""
    config = {**weights.architecture.vae, "scaling_factor": weights.architecture.latent_scale}
    return _build(AutoencoderKL, config, weights.vae)


def _build(build: object, config: Mapping[str, object], network: object) -> nn.Module:
    with torch.device("meta"):
        module = cast("Any", build)(**config).eval()
    module.load_state_dict(cast("Any", network).module.state_dict(), assign=True)
    return module.requires_grad_(False)


def build_pipeline(weights: Weights, tokenizers: Sequence[object] = ()) -> Any:
    """Return diffusers' pipeline; without tokenizers it takes prompt embeddings alone."""
    encoders = [cast("Any", encoder).module for encoder in weights.text_encoders] if tokenizers else []
    first, second = (*encoders, None, None)[:2]
    tokenizer, other = (*tokenizers, None, None)[:2]
    pipeline = cast("Any", StableDiffusionXLPipeline)(
        vae=build_diffusers_vae(weights),
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


def compile_pipeline(pipeline: Any) -> None:
    """Make a pipeline as fast as diffusers' documentation does without loss ("Accelerate inference").

    torch's own mode is taken instead of "max-autotune", which needs minutes and gains little or loses.
    """
    pipeline.fuse_qkv_projections()
    for network in (pipeline.unet, pipeline.vae):
        network.to(memory_format=torch.channels_last)
    pipeline.unet = torch.compile(pipeline.unet, fullgraph=True)
    pipeline.vae.decode = torch.compile(pipeline.vae.decode, fullgraph=True)


def encode_prompts(weights: Weights) -> tuple[Conditioning, Conditioning]:
    """Return the conditionings of a prompt and a negative prompt."""
    texts = PromptEncoder(weights.text_encoders, weights.device).encode(Prompts("1girl, smile", "lowres"))
    return texts.positive, texts.negative


def build_latents_run(pipeline: Any, weights: Weights, size: Size, steps: int) -> Callable[[], Tensor]:
    """Return a function that generates an image's latents with CFG, from prompts that are encoded already."""
    prompt, negative = encode_prompts(weights)
    assert prompt.pooled is not None
    assert negative.pooled is not None
    embeddings = {
        "prompt_embeds": prompt.context[None],
        "negative_prompt_embeds": negative.context[None],
        "pooled_prompt_embeds": prompt.pooled[None],
        "negative_pooled_prompt_embeds": negative.pooled[None],
    }
    embeddings = {name: tensor.to(weights.dtype) for name, tensor in embeddings.items()}
    width, height = size

    def generate() -> Tensor:
        return pipeline(
            **embeddings,
            width=width,
            height=height,
            num_inference_steps=steps,
            guidance_scale=5.0,
            generator=torch.Generator().manual_seed(1),
            output_type="latent",
        ).images

    return generate
