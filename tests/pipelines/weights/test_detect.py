import subprocess
import sys

import pytest
from checkpoint_files import CONV_IN, CONV_OUT, CROSS, MARKERS, SDXL, hollow

from pipelines.errors import WeightsError
from pipelines.weights.detect import detect, detect_inpainting


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
    ("key", "shape"),
    [(CONV_IN, ()), (CONV_IN, (320,)), (CONV_IN, (320, 4, 3)), (CROSS, ()), (CROSS, (2048,))],
)
def test_a_weight_of_the_wrong_rank_is_refused_by_its_key(tmp_path, key, shape):
    with pytest.raises(WeightsError, match=rf"{key} has the shape \({', '.join(map(str, shape))}"):
        detect(hollow(tmp_path / "a.safetensors", SDXL | {key: shape}))


def test_a_consistency_model_that_takes_the_guidance_scale_is_refused(tmp_path):
    key = "model.diffusion_model.time_embedding.cond_proj.weight"
    with pytest.raises(WeightsError, match="latent consistency model"):
        detect(hollow(tmp_path / "a.safetensors", SDXL | {key: (320, 256)}))


def test_a_configured_prediction_does_not_make_a_structure_run(tmp_path):
    for prediction in (None, "eps", "edm_v"):
        with pytest.raises(WeightsError, match="Playground"):
            detect(hollow(tmp_path / "a.safetensors", SDXL | {"edm_mean": (4,)}), prediction)


def test_a_prediction_is_assumed_only_if_nothing_indicates_or_sets_one(tmp_path):
    path = hollow(tmp_path / "a.safetensors", SDXL)
    assert detect(path).is_assumed
    assert not detect(path, "eps").is_assumed
    assert not detect(hollow(tmp_path / "b.safetensors", SDXL | MARKERS)).is_assumed
    assert not detect(hollow(tmp_path / "c-eps.safetensors", SDXL)).is_assumed


def test_zero_terminal_snr_in_the_configuration_implies_velocity(tmp_path):
    detection = detect(hollow(tmp_path / "a.safetensors", SDXL), zsnr=True)
    assert (detection.prediction, detection.zsnr, detection.is_assumed) == ("v", True, False)


def test_inpainting_weights_that_indicate_no_prediction_have_the_models(tmp_path):
    shapes = SDXL | {CONV_IN: (320, 9, 3, 3)}
    path = hollow(tmp_path / "inpainting.safetensors", shapes)
    for markers, expected in ((MARKERS, ("v", True)), ({"v_pred": (0,)}, ("v", False))):
        model = detect(hollow(tmp_path / "model.safetensors", SDXL | markers))
        detection = detect_inpainting(path, model)
        assert (detection.prediction, detection.zsnr, detection.is_assumed) == (*expected, False)
    stated = hollow(tmp_path / "stated.safetensors", shapes, {"modelspec.prediction_type": "epsilon"})
    with pytest.raises(WeightsError, match="prediction is eps, the model's v"):
        detect_inpainting(stated, model)


def test_inpainting_weights_are_not_compared_with_an_assumed_prediction(tmp_path):
    model = detect(hollow(tmp_path / "model.safetensors", SDXL))
    path = hollow(tmp_path / "inpainting.safetensors", SDXL | {CONV_IN: (320, 9, 3, 3)} | MARKERS)
    assert detect_inpainting(path, model).prediction == "v"


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
    detection = detect(hollow(tmp_path / "a.safetensors", model | stray))
    assert detection.family == "sdxl"
    assert f"{len(stray)} tensors of a LoRA or a ControlNet are ignored" in detection.evidence
    with pytest.raises(WeightsError, match=r"a LoRA|a ControlNet"):
        detect(hollow(tmp_path / "b.safetensors", stray))


def test_an_image_adapter_is_no_model(tmp_path):
    shapes = {"image_proj.norm.weight": (2048,), "ip_adapter.1.to_k_ip.weight": (640, 2048)}
    with pytest.raises(WeightsError, match="an IP-Adapter, not a model; name it as the `vibe` of one"):
        detect(hollow(tmp_path / "a.safetensors", shapes))


def test_a_controlnet_in_diffusers_layout_has_no_unet(tmp_path):
    shapes = {"conv_in.weight": (320, 4, 3, 3), "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)}
    with pytest.raises(WeightsError, match="a ControlNet, not a model; name it under "):
        detect(hollow(tmp_path / "a.safetensors", shapes))


def test_a_quantized_unet_is_named_though_its_shapes_are_not_sdxls(tmp_path):
    key = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    packed = {key: (655_360, 1), f"{key}.quant_state.bitsandbytes__nf4": (80,), f"{key}.absmax": (20_480,)}
    with pytest.raises(WeightsError, match="quantized by bitsandbytes"):
        detect(hollow(tmp_path / "a.safetensors", SDXL | packed))
