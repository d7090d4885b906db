"""What is recognized as a ControlNet, and the reasons for which others are refused."""

import json
import re
from dataclasses import replace

import pytest
from checkpoint_files import SDXL, hollow
from control_files import ARCHITECTURES, build_control, save_control

from pipelines.adapters.control_file import detect_control
from pipelines.adapters.controlnet import plan_control
from pipelines.errors import WeightsError
from pipelines.weights.checkpoint import fingerprint

HINTS = {
    "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3),
    "controlnet_cond_embedding.blocks.1.weight": (32, 16, 3, 3),
    "controlnet_cond_embedding.blocks.3.weight": (96, 32, 3, 3),
    "controlnet_cond_embedding.blocks.5.weight": (256, 96, 3, 3),
}
TEXT = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
FIRST_TEXT = TEXT.replace("down_blocks.1", "down_blocks.0")
SMALL_SDXL = HINTS | {
    "conv_in.weight": (320, 4, 3, 3),
    TEXT: (640, 2048),
    "add_embedding.linear_1.weight": (1280, 2816),
    "mid_block.attentions.0.transformer_blocks.9.norm1.weight": (1280,),
}
"""The tensors by which a ControlNet of SDXL is detected."""
REFUSED = {
    "a Control-LoRA": ({"lora_controlnet": (), "input_hint_block.0.weight": (16, 3, 3, 3)}, "a Control-LoRA, which"),
    "a T2I-Adapter": ({"adapter.body.0.block1.weight": (320, 320, 3, 3)}, "a T2I-Adapter, which is not supported"),
    "LLLite": ({"lllite_unet_input_blocks_4_1.down.0.weight": (4, 4)}, "a ControlNet-LLLite, which"),
    "XS": (HINTS | {"control_to_base_for_conv_in.weight": (320, 16, 1, 1)}, "a ControlNet-XS, which"),
    "BrushNet": ({"conv_in_condition.weight": (320, 9, 3, 3)}, "a BrushNet, which"),
    "SparseCtrl": (HINTS | {"down_blocks.0.motion_modules.0.norm.weight": (320,)}, "a SparseCtrl, which"),
    "a difference": ({"difference": (), "input_hint_block.0.weight": (16, 3, 3, 3)}, "as the difference to another"),
    "Flux": ({"controlnet_blocks.0.weight": (3072, 3072)}, "a ControlNet of a transformer .Flux., which is not "),
    "an IP-Adapter": ({"image_proj.norm.weight": (2048,)}, "no ControlNet but an IP-Adapter; name it as the"),
    "a LoRA": ({"lora_unet_mid_block.lora_down.weight": (4, 8)}, "no ControlNet but a LoRA"),
    "a model": (SDXL | {"model.diffusion_model.out.2.weight": (4, 320, 3, 3)}, "no ControlNet but a model"),
    "an upscaler": ({"RRDB.rdb1.conv1.weight": (32, 64, 3, 3)}, "no ControlNet but an upscaling network"),
    "another file": ({"a": (1,)}, "it has neither controlnet_cond_embedding.conv_in.weight nor input_hint_block.0"),
    "SD 2": (HINTS | {"conv_in.weight": (320, 4, 3, 3), FIRST_TEXT: (320, 1024)}, "Stable Diffusion 2 .text width 1024"),
    "no cross-attention": (HINTS | {"conv_in.weight": (320, 4, 3, 3)}, "no copy of the UNet of Stable Diffusion 1 or SDXL"),
    "9 channels": (SMALL_SDXL | {"conv_in.weight": (320, 9, 3, 3)}, "takes 9 latent channels and a map of 3"),
    "6 colors": (SMALL_SDXL | {"controlnet_cond_embedding.conv_in.weight": (16, 6, 3, 3)}, "4 latent channels and a map of 6"),
    "half a hint encoder": (
        {key: shape for key, shape in SMALL_SDXL.items() if ".blocks.5." not in key},
        r"controlnet_cond_embedding.blocks.5.weight is missing",
    ),
    "an uneven union": (
        SMALL_SDXL | {"task_embedding": (6, 320), "control_add_embedding.linear_1.weight": (1280, 1000)},
        "task_embedding has 6 control types, which do not divide 1000",
    ),
    "nf4": (SMALL_SDXL | {"conv_in.weight.absmax": (20,)}, "quantized by bitsandbytes"),
}  # fmt: skip
"""Shapes of files that are no ControlNet that can run, and what is said about them."""


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_is_refused_by_name(name, tmp_path):
    shapes, said = REFUSED[name]
    with pytest.raises(WeightsError, match=said):
        detect_control(hollow(tmp_path / "a.safetensors", shapes))


def test_a_pickle_is_refused(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(WeightsError, match="a pickle can run code"):
        detect_control(tmp_path / "a.pth")


def write_folder(path, name="diffusion_pytorch_model.fp16", **config):
    path.mkdir()
    hollow(path / f"{name}.safetensors", SMALL_SDXL)
    (path / "config.json").write_text(json.dumps({"_class_name": "ControlNetModel"} | config))
    return path


def test_a_folder_is_read_with_what_its_config_alone_tells(tmp_path):
    path = write_folder(tmp_path / "a")
    file = detect_control(path)
    assert (file.path, file.family, file.modes, file.layout) == (path, "sdxl", None, "diffusers")
    assert file.config == {
        "conditioning_embedding_out_channels": (16, 32, 96, 256),
        "controlnet_conditioning_channel_order": "rgb",
        "global_pool_conditions": False,
    }
    other = write_folder(
        tmp_path / "b", controlnet_conditioning_channel_order="bgr", global_pool_conditions=True
    )
    assert detect_control(other).config["controlnet_conditioning_channel_order"] == "bgr"
    assert detect_control(other).config["global_pool_conditions"] is True
    assert len(fingerprint(path)) == 8
    third = write_folder(tmp_path / "c", controlnet_conditioning_channel_order="gbr")
    with pytest.raises(WeightsError, match=r"the channel order gbr; rgb and bgr are known"):
        detect_control(third)


def test_a_mode_is_needed_for_a_union_alone(tmp_path):
    architecture = ARCHITECTURES["sdxl"]
    plain = detect_control(
        save_control(tmp_path / "a.safetensors", build_control(architecture), architecture)
    )
    plain.check_mode(None)
    with pytest.raises(WeightsError, match="a ControlNet of one control type; remove the mode 2"):
        plain.check_mode(2)
    union = replace(plain, modes=6)
    union.check_mode(5)
    for mode, said in (
        (None, "no mode is given; 0 to 5"),
        (6, "the mode is 6; 0 to 5"),
        (-1, "the mode is -1"),
    ):
        with pytest.raises(WeightsError, match=said):
            union.check_mode(mode)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mid_block.resnets.0.conv1.bias": None}, "1 missing (mid_block.resnets.0.conv1.bias)"),
        ({"encoder_hid_proj.weight": (8, 8)}, "1 unexpected (encoder_hid_proj.weight); it is of another architecture"),
        ({"controlnet_mid_block.bias": (64,)}, "controlnet_mid_block.bias has the shape (64,), not (128,)"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_the_model_are_named(tmp_path, change, said):
    architecture = ARCHITECTURES["sdxl"]
    network = build_control(architecture)
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()} | change
    metadata = {"naiad.architecture": architecture.to_json()}
    present = {key: shape for key, shape in shapes.items() if shape is not None}
    file = detect_control(hollow(tmp_path / "a.safetensors", present, metadata))
    with pytest.raises(WeightsError, match=re.escape(said)):
        plan_control(file, architecture.unet)
