from dataclasses import replace

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import load_file

from demo.architecture import demo_architecture
from demo.checkpoint import random_weights
from pipelines.weights.architecture import sd15, sdxl
from pipelines.weights.key_map import to_stored
from pipelines.weights.model_plan import model_parts
from pipelines.weights.networks import build_networks


def assert_equal(tensors, expected):
    assert set(tensors) == set(expected)
    for key, tensor in tensors.items():
        assert tensor.shape == expected[key].shape, key
        assert torch.equal(tensor, expected[key].to(tensor.dtype)), key


@pytest.fixture(scope="module")
def stored(demo_file):
    return load_file(demo_file)


def build_parts(architecture):
    unet, vae, encoders = build_networks(architecture)
    return model_parts(architecture, unet.module, vae.module, [encoder.module for encoder in encoders])


def small_sd15():
    """Stable Diffusion 1's architecture with a few channels; its attention projects by convolutions."""
    full, small = sd15(), demo_architecture()
    unet = dict(full.unet) | {"block_out_channels": [16, 16, 32, 32], "norm_num_groups": 8}
    unet |= {"attention_head_dim": 2, "cross_attention_dim": 48}
    encoder = replace(full.text_encoders[0], config=small.text_encoders[0].config)
    return replace(full, unet=unet, vae=small.vae, text_encoders=(encoder,))


def test_the_stable_diffusion_1_table_agrees_with_diffusers_conversion():
    architecture = small_sd15()
    part = build_parts(architecture)[0]
    weights = random_weights(part.module, 7)
    config = dict(architecture.unet) | {"class_embed_type": None}
    assert_equal(weights, convert_ldm_unet_checkpoint(to_stored(part.keys, weights), config))


def test_exporting_a_loaded_model_reproduces_the_file(stored, demo):
    weights = demo.weights
    modules = [
        weights.unet.module,
        weights.vae.module,
        *(encoder.module for encoder in weights.text_encoders),
    ]
    exported = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    for part, module in zip(build_parts(demo_architecture()), modules, strict=True):
        exported |= to_stored(part.keys, module.state_dict())
    assert_equal(exported, stored)


@pytest.mark.parametrize("architecture", [sdxl(), sdxl(9), sd15(), demo_architecture(), demo_architecture(9)])
def test_no_two_weights_map_to_the_same_tensor(architecture):
    for part in build_parts(architecture):
        targets = [(mapped.key, mapped.part) for mapped in part.keys.values()]
        assert len(set(targets)) == len(targets)


WELL_KNOWN_KEYS = (
    "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
    "model.diffusion_model.label_emb.0.0.weight",
    "model.diffusion_model.middle_block.1.transformer_blocks.9.norm1.weight",
    "model.diffusion_model.output_blocks.2.2.conv.weight",
    "first_stage_model.decoder.mid.attn_1.q.weight",
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight",
    "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias",
    "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_weight",
    "conditioner.embedders.1.model.text_projection",
)


def test_well_known_keys_are_in_the_tables():
    keys = {mapped.key for part in build_parts(sdxl()) for mapped in part.keys.values()}
    assert keys.issuperset(WELL_KNOWN_KEYS)
