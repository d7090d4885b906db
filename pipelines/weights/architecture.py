"""The shapes of the networks that can run, as constants: no file is read and nothing is downloaded.

The values are facts of the released architectures; families.py lists the families that they belong to.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, cast

from pipelines.types import Family

METADATA_KEY = "naiad.architecture"
"""Key of the safetensors metadata under which a model of no released architecture carries its own."""
END_OF_TEXT = 49407

Config = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class TextEncoderConfig:
    """One CLIP text encoder."""

    config: Config  # arguments of transformers' `CLIPTextConfig`
    layout: Literal["clip", "openclip"]  # how single-file checkpoints name its tensors
    pad: int  # token id that fills the positions after the end of the text
    projection: bool  # whether it returns a pooled vector
    final_norm: bool  # whether the penultimate layer is normalized

    @property
    def width(self) -> int:
        """Width of its token embeddings."""
        return cast("int", self.config["hidden_size"])

    @property
    def layers(self) -> int:
        """Number of its layers."""
        return cast("int", self.config["num_hidden_layers"])


@dataclass(frozen=True, slots=True)
class Architecture:
    """Everything needed to build a model's networks; the VAE's latents are multiplied by `latent_scale`."""

    family: Family
    unet: Config
    vae: Config
    text_encoders: tuple[TextEncoderConfig, ...]
    latent_scale: float

    @property
    def channels(self) -> int:
        """Input channels of the UNet: 4, or 9 for inpainting."""
        return cast("int", self.unet["in_channels"])

    def to_json(self) -> str:
        """Return the architecture as one line of JSON; equal architectures give equal text."""
        fields = asdict(self)
        fields["towers"] = fields.pop("text_encoders")
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def sdxl(channels: int = 4) -> Architecture:
    """Return Stable Diffusion XL's architecture, with 4 input channels or 9 for inpainting."""
    unet = _unet_config(channels) | {
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [5, 10, 20],  # numbers of heads; diffusers kept the wrong name for old files
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    return Architecture("sdxl", unet, _vae_config(), (clip_l(final_norm=False), big_g()), 0.13025)


def sd15(channels: int = 4) -> Architecture:
    """Return Stable Diffusion 1.x' architecture, which NovelAI's open V1 and V2 weights share.

    Unlike SDXL, NovelAI normalizes the penultimate layer of the text encoder (its blog of October 2022).
    """
    unet = _unet_config(channels) | {
        "sample_size": 64,
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        "attention_head_dim": 8,
        "transformer_layers_per_block": 1,
        "cross_attention_dim": 768,
        "use_linear_projection": False,
    }
    return Architecture("sd15", unet, _vae_config(), (clip_l(final_norm=True),), 0.18215)


def clip_l(final_norm: bool) -> TextEncoderConfig:
    """Return OpenAI's ViT-L/14 text encoder, padded with its own end-of-text token."""
    config = clip_config(width=768, layers=12, heads=12, activation="quick_gelu")
    return TextEncoderConfig(config, "clip", pad=END_OF_TEXT, projection=False, final_norm=final_norm)


def big_g() -> TextEncoderConfig:
    """Return OpenCLIP's ViT-bigG/14 text encoder, padded with token 0."""
    config = clip_config(width=1280, layers=32, heads=20, activation="gelu")
    return TextEncoderConfig(config, "openclip", pad=0, projection=True, final_norm=False)


def clip_config(width: int, layers: int, heads: int, activation: str) -> Config:
    """Return the config of a CLIP text encoder with CLIP's vocabulary.

    Released configs set `eos_token_id` to 2, which makes transformers pool at the largest id. That is wrong as
    soon as a textual inversion adds ids above the end of text.
    """
    return {
        "vocab_size": 49408,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "projection_dim": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 77,
        "hidden_act": activation,
        "layer_norm_eps": 1e-5,
        "bos_token_id": 49406,
        "eos_token_id": END_OF_TEXT,
    }


def _unet_config(channels: int) -> dict[str, object]:
    return {
        "in_channels": channels,
        "out_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "act_fn": "silu",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "addition_embed_type": None,
        "addition_time_embed_dim": None,
        "projection_class_embeddings_input_dim": None,
    }


def _vae_config() -> Config:
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "act_fn": "silu",
    }
