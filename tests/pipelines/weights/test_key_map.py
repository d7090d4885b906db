from dataclasses import replace

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import load_file

from demo.architecture import demo_architecture
from demo.checkpoint import random_weights
from pipelines.weights.architecture import sd15, sdxl
from pipelines.weights.key_map import to_stored
from pipelines.weights.load import model_parts
from pipelines.weights.networks import build_networks


def equal(ours, theirs):
    assert set(ours) == set(theirs)
    for key, tensor in ours.items():
        assert tensor.shape == theirs[key].shape, key
        assert torch.equal(tensor, theirs[key].to(tensor.dtype)), key


@pytest.fixture(scope="module")
def stored(demo_file):
    return load_file(demo_file)


def tables(architecture):
    unet, vae, towers = build_networks(architecture)
    return model_parts(architecture, unet.module, vae.module, [tower.module for tower in towers])


def small_sd15():
    """Stable Diffusion 1's wiring, with attention by convolutions as it has, at a few channels."""
    full, small = sd15(), demo_architecture()
    unet = dict(full.unet) | {"block_out_channels": [16, 16, 32, 32], "norm_num_groups": 8}
    unet |= {"attention_head_dim": 2, "cross_attention_dim": 48}
    tower = replace(full.text_encoders[0], config=small.text_encoders[0].config)
    return replace(full, unet=unet, vae=small.vae, text_encoders=(tower,))


def test_stable_diffusion_1_agrees_with_diffusers_too():
    architecture = small_sd15()
    part = tables(architecture)[0]
    ours = random_weights(part.module, 7)
    told = dict(architecture.unet) | {"class_embed_type": None}
    equal(ours, convert_ldm_unet_checkpoint(to_stored(part.sources, ours), told))


def test_exporting_what_was_loaded_gives_the_file_back(stored, demo):
    weights = demo.weights
    modules = [weights.unet.module, weights.vae.module, *(tower.module for tower in weights.text_encoders)]
    again = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    for part, module in zip(tables(demo_architecture()), modules, strict=True):
        again |= to_stored(part.sources, module.state_dict())
    equal(again, stored)


@pytest.mark.parametrize("architecture", [sdxl(), sdxl(9), sd15(), demo_architecture(), demo_architecture(9)])
def test_no_two_weights_come_from_the_same_place(architecture):
    for part in tables(architecture):
        places = [(source.key, source.part) for source in part.sources.values()]
        assert len(set(places)) == len(places)


KNOWN = (
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


def test_keys_that_everybody_looks_for_are_in_the_tables():
    ours = {source.key for part in tables(sdxl()) for source in part.sources.values()}
    assert ours.issuperset(KNOWN)
