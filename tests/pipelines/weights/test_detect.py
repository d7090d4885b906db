import subprocess
import sys

import pytest
from checkpoint_files import CONV_OUT, MARKERS, SDXL, hollow

from pipelines.errors import WeightsError
from pipelines.weights.detect import detect


@pytest.mark.parametrize("name", ["flower-garden", "overflow_mix", "airflowXL", "surfMix"])
def test_flow_within_a_longer_word_is_no_rectified_flow(tmp_path, name):
    assert detect(hollow(tmp_path / f"{name}.safetensors", SDXL)).prediction == "eps"


def test_a_link_is_detected_by_its_own_name(tmp_path):
    blob = hollow(tmp_path / "6327eca9", SDXL)
    link = tmp_path / "model-vpred.safetensors"
    link.symlink_to(blob)
    assert detect(link).prediction == "v"


def test_markers_come_before_metadata_and_metadata_before_the_name(tmp_path):
    metadata = {"modelspec.prediction_type": "epsilon"}
    assert detect(hollow(tmp_path / "vpred.safetensors", SDXL | MARKERS, metadata)).prediction == "v"
    assert detect(hollow(tmp_path / "vpred.safetensors", SDXL, metadata)).prediction == "eps"


def test_detection_needs_no_torch():
    code = "import sys, pipelines.weights.detect, pipelines.weights.key_map; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("key", ["lycoris_blocks_0.hada_w1_a", "lycoris_blocks_0.lokr_w2"])
def test_every_kind_of_lora_is_refused_as_one(tmp_path, key):
    with pytest.raises(WeightsError, match="a LoRA"):
        detect(hollow(tmp_path / "a.safetensors", {key: (4, 320)}))


@pytest.mark.parametrize(
    "stray",
    [
        {"lora_unet_mid_block_attentions_0.lora_down.weight": (4, 8), "lora_te1_x.alpha": ()},
        {"unet.mid_block.attn1.to_q.lora_A.weight": (4, 8)},
        {"lycoris_blocks_0.hada_w1_a": (4, 8), "lycoris_blocks_0.dora_scale": (4,)},
        {"control_model.input_blocks.0.0.weight": (320, 4, 3, 3)},
    ],
)
def test_keys_of_a_lora_or_a_controlnet_matter_only_without_a_unet(tmp_path, stray):
    model = SDXL | {CONV_OUT: (4, 320, 3, 3)}
    assert detect(hollow(tmp_path / "a.safetensors", model | stray)).family == "sdxl"
    with pytest.raises(WeightsError, match=r"a LoRA|a ControlNet"):
        detect(hollow(tmp_path / "b.safetensors", stray))


def test_a_controlnet_in_diffusers_layout_has_no_unet(tmp_path):
    shapes = {"conv_in.weight": (320, 4, 3, 3), "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)}
    with pytest.raises(WeightsError, match="a ControlNet"):
        detect(hollow(tmp_path / "a.safetensors", shapes))


def test_a_quantized_unet_is_named_though_its_shapes_are_not_sdxls(tmp_path):
    key = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    packed = {key: (655_360, 1), f"{key}.quant_state.bitsandbytes__nf4": (80,), f"{key}.absmax": (20_480,)}
    with pytest.raises(WeightsError, match="quantized by bitsandbytes"):
        detect(hollow(tmp_path / "a.safetensors", SDXL | packed))
