"""Stable Diffusion 1 at a small size, in files with the names of 2022."""

from dataclasses import replace

from safetensors.torch import save_file

from demo.architecture import NARROW, demo_architecture
from demo.checkpoint import random_weights
from pipelines.weights.architecture import METADATA_KEY, Architecture, sd15
from pipelines.weights.key_map import to_stored
from pipelines.weights.model_plan import model_parts
from pipelines.weights.networks import build_networks

OLD_TEXT = "cond_stage_model.transformer."
"""What keys of the text encoder begin with in the file that leaked in 2022, without `text_model.`."""


def small_sd15():
    """The architecture, with one text encoder and its final norm."""
    unet = dict(sd15().unet) | {
        "block_out_channels": [32, 32, 64, 64],
        "layers_per_block": 1,
        "cross_attention_dim": NARROW,
        "attention_head_dim": 4,
        "norm_num_groups": 16,
    }
    text_encoder = replace(demo_architecture().text_encoders[0], final_norm=True)
    return Architecture("sd15", unet, demo_architecture().vae, (text_encoder,), 0.18215)


def write_small_sd15(file, text_file=None):
    """Write random weights of a whole model; with `text_file`, the text encoder goes there."""
    architecture = small_sd15()
    unet, vae, (encoder,) = build_networks(architecture)
    stored = {}
    for part in model_parts(architecture, unet.module, vae.module, [encoder.module]):
        for key, tensor in to_stored(part.keys, random_weights(part.module, 1)).items():
            stored[key.replace("transformer.text_model.", "transformer.")] = tensor.contiguous()
    text = {key: tensor for key, tensor in stored.items() if key.startswith(OLD_TEXT)}
    if text_file is not None:
        save_file(text, text_file)
        stored = {key: tensor for key, tensor in stored.items() if key not in text}
    save_file(stored, file, {METADATA_KEY: architecture.to_json()})
    return file
