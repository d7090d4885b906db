"""The names of every trainer lead to the same weights."""

import json

import pytest
import torch
from lora_files import write_lora

from demo.checkpoint import DEMO
from pipelines.adapters.lora_file import read_lora
from pipelines.adapters.lora_patches import match_lora
from pipelines.adapters.lora_tensors import load_patches
from pipelines.adapters.residency import describe_networks
from pipelines.errors import WeightsError
from pipelines.weights.checkpoint import UNET_PREFIX
from pipelines.weights.families import FAMILIES
from pipelines.weights.model_plan import model_parts, plan_model
from pipelines.weights.networks import build_networks

QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"
OUT = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0.weight"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj.weight"
SPELLINGS = {
    "kohya, SDXL": ("lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q.lora_{}.weight", ("down", "up"), QUERY),
    "kohya, diffusers' layers": ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_{}.weight", ("down", "up"), QUERY),
    "LyCORIS alone": ("lycoris_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_{}.weight", ("down", "up"), OUT),
    "peft": ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_{}.weight", ("A", "B"), QUERY),
    "peft, wrapped": ("base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_{}.default.weight", ("A", "B"), OUT),
    "ComfyUI": ("diffusion_model.input_blocks.3.1.transformer_blocks.0.attn1.to_q.lora_{}.weight", ("down", "up"), QUERY),
    "diffusers of 2023": ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.{}.weight", ("down", "up"), QUERY),
    "diffusers of 2023, output": ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.{}.weight", ("down", "up"), OUT),
    "diffusers, UNet's loader": ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora.{}.weight", ("down", "up"), QUERY),
    "kohya, first text encoder": ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_{}.weight", ("down", "up"), TEXT),
    "kohya, text encoder of SD 1": ("lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_{}.weight", ("down", "up"), TEXT),
    "kohya, second text encoder": ("lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_{}.weight", ("down", "up"), TEXT),
    "peft, text encoder": ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_{}.weight", ("A", "B"), TEXT),
    "diffusers, text encoder": ("text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.{}.weight", ("down", "up"), TEXT),
    "diffusers of 2023, text encoder": ("text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.{}.weight", ("down", "up"), TEXT),
}  # fmt: skip


@pytest.fixture(scope="module")
def networks():
    return describe_networks(planned.part for planned in plan_model(DEMO).parts)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_layer_is_found_under_every_trainers_name(tmp_path, networks, spelling):
    key, (down, up), weight = SPELLINGS[spelling]
    width = 64 if weight != TEXT or "te2" in key or "encoder_2" in key else 32
    tensors = {key.format(down): torch.ones(2, width), key.format(up): torch.ones(width, 2)}
    (patch,) = match_lora(read_lora(write_lora(tmp_path / "x.safetensors", tensors)), networks)
    assert patch.weight.removeprefix("text_model.") == weight.removeprefix("text_model.")
    assert patch.kind == "LoRA"


def test_pefts_alpha_is_read_from_the_metadata_that_diffusers_writes(tmp_path, networks):
    key = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.{}.lora_{}.weight"
    tensors = {
        key.format(layer, side): torch.ones((2, 64) if side == "A" else (64, 2))
        for layer in ("to_q", "to_k", "to_out.0")
        for side in "AB"
    }

    def read_scales(**fields):
        metadata = {
            "lora_adapter_metadata": json.dumps({f"unet.{name}": value for name, value in fields.items()})
        }
        file = read_lora(write_lora(tmp_path / "x.safetensors", tensors, metadata))
        patches = load_patches(file, match_lora(file, networks))
        return {patch.patch.weight.split(".attn1.")[1]: patch.scale for patch in patches}

    assert set(read_scales().values()) == {1.0}
    assert set(read_scales(lora_alpha=1, r=2).values()) == {0.5}
    assert read_scales(lora_alpha=2, use_rslora=True)["to_q.weight"] == pytest.approx(2**0.5)
    scales = read_scales(lora_alpha=2, alpha_pattern={"attn1.to_k": 1})
    assert scales == {"to_q.weight": 1.0, "to_k.weight": 0.5, "to_out.0.weight": 1.0}


def test_a_key_that_occurs_under_two_names_is_refused(tmp_path):
    tensors = {
        f"{prefix}.lora_{side}.weight": torch.ones(2, 2)
        for prefix in ("lora_unet_conv_in", "unet.conv_in")
        for side in ("down", "up")
    }
    with pytest.raises(WeightsError, match="change the same layer"):
        read_lora(write_lora(tmp_path / "x.safetensors", tensors))


def test_a_checkpoint_is_no_lora():
    with pytest.raises(WeightsError, match="no LoRA"):
        read_lora(DEMO)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_every_layer_of_a_full_size_unet_is_found_under_both_layouts(family):
    architecture = FAMILIES[family].architecture(4)
    (part,) = model_parts(architecture, build_networks(architecture)[0].module)
    layers = describe_networks([part])[0].layers
    names = {name.rpartition(".")[0] for name in part.keys}
    original = {part.keys[name].key.removeprefix(UNET_PREFIX).rpartition(".")[0] for name in part.keys}
    assert {layers[name.replace(".", "_")] for name in names} == names
    assert {layers[name.replace(".", "_")] for name in original} == names
