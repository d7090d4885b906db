"""Safetensors files that are not a model we run, each refused by the name its owner knows it under."""

from collections.abc import Iterable
from typing import Protocol

from pipelines.checkpoint import Checkpoint
from pipelines.errors import WeightsError

# part of a key that only this kind of file has, and what the file is
MARKS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("lora_unet_", "lora_te", ".lora_", ".hada_w", ".lokr_w"),
        "a LoRA, not a model; it goes with one, not in its place",
    ),
    (("control_model.", "controlnet_", "lora_controlnet"), "a ControlNet, not a model"),
    (("ip_adapter.", "image_proj."), "an IP-Adapter, not a model"),
    (("emb_params", "string_to_param"), "a textual inversion, not a model"),
    (
        ("joint_blocks.", "double_blocks.", "double_stream"),
        "a Flux or SD3 model; only SDXL and SD 1.x run here",
    ),
    (("cond_stage_model.model.",), "a Stable Diffusion 2.x model; only SDXL and SD 1.x run here"),
)
UNET_KEYS = ("model.diffusion_model.", "input_blocks.", "unet.", "down_blocks.")
VAE_KEYS = ("first_stage_model.", "vae.", "decoder.conv_in.", "decoder.mid.", "decoder.mid_block.")
TEXT_KEYS = ("conditioner.", "cond_stage_model.", "text_encoder", "text_model.", "embeddings.")
DECODERS = ("first_stage_model.decoder.conv_in.weight", "vae.decoder.conv_in.weight")


class Figures(Protocol):
    """What is measured of a UNet."""

    @property
    def channels(self) -> int:
        """Input channels of the first convolution."""
        ...

    @property
    def width(self) -> int:
        """Its output channels."""
        ...

    @property
    def context(self) -> int:
        """Features that cross-attention reads, 0 if there is none."""
        ...

    @property
    def deep(self) -> bool:
        """Whether the middle has SDXL's ten transformer blocks."""
        ...


def refuse_stranger(checkpoint: Checkpoint) -> None:
    """WeightsError if the keys are those of another kind of file, or of a part of a model without its UNet."""
    keys = tuple(checkpoint.tensors)
    for marks, what in MARKS:
        if any(mark in key for key in keys for mark in marks):
            raise WeightsError(checkpoint.path, what)
    if _any_starts(keys, UNET_KEYS):
        return
    if _any_starts(keys, VAE_KEYS):
        raise WeightsError(checkpoint.path, "a VAE alone, not a model; it goes with one as its `vae`")
    if _any_starts(keys, TEXT_KEYS):
        raise WeightsError(checkpoint.path, "a text encoder alone, not a model")


def _any_starts(keys: Iterable[str], prefixes: tuple[str, ...]) -> bool:
    return any(key.startswith(prefixes) for key in keys)


def refuse_shape(checkpoint: Checkpoint, unet: Figures) -> None:
    """WeightsError if the UNet or the VAE is of a known kind that does not run here."""
    latents = [checkpoint.tensors[key].shape[1] for key in DECODERS if key in checkpoint.tensors]
    odd = next((count for count in (*latents, unet.channels) if count in {16, 32, 128}), None)
    reason = _stranger_shape(unet) if odd is None else f"made for a {odd}-channel VAE; only 4 are supported"
    if reason:
        raise WeightsError(checkpoint.path, reason)


def _stranger_shape(unet: Figures) -> str | None:
    if unet.width == 384:
        return "the SDXL refiner, which is not supported; use the base model"
    if unet.context == 1024:
        return "a Stable Diffusion 2.x model; only SDXL and SD 1.x run here"
    if unet.channels == 8:
        return "an 8-channel edit model (instruct-pix2pix), which is not supported"
    if unet.channels not in {4, 9}:
        return f"a UNet of {unet.channels} input channels; 4 and 9 are supported"
    if unet.context == 2048 and not unet.deep:
        return "SSD-1B, Vega or another thinned SDXL, which is not supported"
    return None
