"""The architecture of the demo model: a small SDXL over the full vocabulary."""

from pipelines.weights.architecture import Architecture, TextEncoderConfig, clip_config, sdxl

NARROW, WIDE = 32, 64
"""Widths of the two text encoders."""
LATENT_SCALE = 0.99
"""One over the measured standard deviation of its VAE's latents."""


def demo_architecture(channels: int = 4) -> Architecture:
    """Return the architecture with 4 latent channels, or 9 for inpainting.

    Block types, the two text encoders and the size ids are SDXL's. Widths and depths are small enough for a laptop;
    attention heads are 16 wide.
    """
    full = sdxl(channels)
    unet = dict(full.unet) | {
        "sample_size": 64,
        "block_out_channels": [32, 64, 128],
        "layers_per_block": 1,
        "attention_head_dim": [2, 4, 8],
        "transformer_layers_per_block": [1, 1, 2],
        "norm_num_groups": 16,
        "cross_attention_dim": NARROW + WIDE,
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": WIDE + 6 * 32,
    }
    vae = dict(full.vae) | {
        "block_out_channels": [16, 32, 64, 96],
        "layers_per_block": 1,
        "norm_num_groups": 8,
    }
    towers = (
        TextEncoderConfig(
            clip_config(NARROW, 3, 2, "quick_gelu"), "clip", full.text_encoders[0].pad, False, False
        ),
        TextEncoderConfig(clip_config(WIDE, 4, 4, "gelu"), "openclip", 0, True, False),
    )
    return Architecture("sdxl", unet, vae, towers, LATENT_SCALE)
