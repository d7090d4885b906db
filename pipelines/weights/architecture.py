"""The shapes of the networks we run, as constants: nothing is read, downloaded or imported to know them.

The values are facts of the released architectures. `Architecture.to_json` is how a small model that is not one
of them (the demo) carries its own shape, under METADATA_KEY in the safetensors metadata.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, cast

from pipelines.types import Family

METADATA_KEY = "naiad.architecture"
END_OF_TEXT = 49407

Config = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class TextEncoderConfig:
    """One CLIP text encoder.

    `layout` is how single-file checkpoints spell it, `pad` the token id behind the end of the text,
    `projection` whether it yields a pooled vector, `final_norm` whether the penultimate layer is normalised.
    """

    config: Config
    layout: Literal["clip", "openclip"]
    pad: int
    projection: bool
    final_norm: bool


@dataclass(frozen=True, slots=True)
class Architecture:
    """Everything needed to build a model's networks; `latent_scale` is what the VAE's latents are multiplied by."""

    family: Family
    unet: Config
    vae: Config
    text_encoders: tuple[TextEncoderConfig, ...]
    latent_scale: float

    @property
    def channels(self) -> int:
        """The UNet's input channels: 4, or 9 for inpainting."""
        return cast("int", self.unet["in_channels"])

    def to_json(self) -> str:
        """The architecture as one line of JSON, always the same for equal architectures."""
        fields = asdict(self)
        fields["towers"] = fields.pop("text_encoders")
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Architecture":
        """Read what `to_json` wrote; anything else is a ValueError.

        The text comes from a stranger's file and its values go to constructors, so it may set only
        what our own constants set.
        """
        try:
            fields = cast("dict[str, object]", json.loads(text))
            towers = cast("list[dict[str, object]]", fields.pop("towers"))
            read = cls(text_encoders=tuple(TextEncoderConfig(**tower) for tower in towers), **fields)  # pyright: ignore[reportArgumentType]
            return _checked(read)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not an architecture: {error}") from error


def _checked(read: Architecture) -> Architecture:
    known = {"sdxl": sdxl(), "sd15": sd15()}.get(read.family)
    if known is None or len(read.text_encoders) != len(known.text_encoders):
        raise ValueError("not an architecture: unknown family or number of text encoders")
    pairs = [(read.unet, known.unet), (read.vae, known.vae)]
    for tower, allowed in zip(read.text_encoders, known.text_encoders, strict=True):
        pairs += [(tower.config, allowed.config), (_wiring(tower), _wiring(allowed))]
    odd = sorted(key for given, allowed in pairs for key in _odd(given, allowed))
    if odd:
        raise ValueError(f"not an architecture: {', '.join(odd)}")
    return read


def _wiring(tower: TextEncoderConfig) -> Config:
    """What of a tower is not in its config; its layout must be the known one, so it stands as a key."""
    return {
        tower.layout: True,
        "pad": tower.pad,
        "final_norm": tower.final_norm,
        "projection": tower.projection,
    }


def _odd(given: Config, allowed: Config) -> set[str]:
    """The keys that only one side has, or whose values are of another type."""
    kinds = [{key: type(value) for key, value in config.items()} for config in (given, allowed)]
    return {key for key in kinds[0] | kinds[1] if kinds[0].get(key) is not kinds[1].get(key)}


def sdxl(channels: int = 4) -> Architecture:
    """Stable Diffusion XL, with 4 input channels or the 9 of its inpainting UNet."""
    return Architecture("sdxl", _sdxl_unet(channels), _vae(), (clip_l(final_norm=False), big_g()), 0.13025)


def sd15(channels: int = 4) -> Architecture:
    """Stable Diffusion 1.x, which NovelAI's open V1 and V2 weights share.

    NovelAI normalises the penultimate layer here (its blog of October 2022), other than SDXL does.
    """
    return Architecture("sd15", _sd15_unet(channels), _vae(), (clip_l(final_norm=True),), 0.18215)


def clip_l(final_norm: bool) -> TextEncoderConfig:
    """OpenAI's ViT-L/14 text tower, padded with its own end-of-text token."""
    config = clip_config(width=768, layers=12, heads=12, activation="quick_gelu")
    return TextEncoderConfig(config, "clip", pad=END_OF_TEXT, projection=False, final_norm=final_norm)


def big_g() -> TextEncoderConfig:
    """OpenCLIP's ViT-bigG/14 text tower, padded with token 0."""
    config = clip_config(width=1280, layers=32, heads=20, activation="gelu")
    return TextEncoderConfig(config, "openclip", pad=0, projection=True, final_norm=False)


def clip_config(width: int, layers: int, heads: int, activation: str) -> Config:
    """A CLIP text tower over the common vocabulary.

    Released configs say `eos_token_id` 2, which makes transformers pool at the largest id: wrong as soon as
    a textual inversion adds ids above the end of text.
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


def _unet(channels: int) -> dict[str, object]:
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


def _sdxl_unet(channels: int) -> Config:
    """`attention_head_dim` is the number of heads: diffusers keeps the wrong name for old files' sake."""
    return _unet(channels) | {
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }


def _sd15_unet(channels: int) -> Config:
    return _unet(channels) | {
        "sample_size": 64,
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        "attention_head_dim": 8,
        "transformer_layers_per_block": 1,
        "cross_attention_dim": 768,
        "use_linear_projection": False,
    }


def _vae() -> Config:
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
