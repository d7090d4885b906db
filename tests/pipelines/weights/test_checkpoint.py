import json
import struct
import time

import pytest
import torch
from checkpoint_files import FOLDER, MARKERS, SD1, SDXL, hollow
from safetensors.torch import save_file

from pipelines.errors import WeightsError
from pipelines.weights.architecture import METADATA_KEY
from pipelines.weights.checkpoint import fingerprint, open_checkpoint
from pipelines.weights.detect import detect
from pipelines.weights.header import read_header


def without(shapes, part):
    return {key: shape for key, shape in shapes.items() if part not in key}


@pytest.mark.parametrize(
    ("name", "shapes", "metadata", "expected", "evidence"),
    [
        ("a", SDXL, None, ("sdxl", 4, "eps", False), "the file indicates no other"),
        ("a", SDXL | MARKERS, None, ("sdxl", 4, "v", True), "v_pred and ztsnr"),
        ("a", SDXL | {"v_pred": (0,)}, None, ("sdxl", 4, "v", False), "ztsnr is not"),
        ("a", SDXL | {"edm_vpred.sigma_max": (0,)}, None, ("sdxl", 4, "edm_v", False), "edm_vpred"),
        ("a", SDXL, {"modelspec.prediction_type": "v"}, ("sdxl", 4, "v", True), "modelspec.prediction_type"),
        ("a", SDXL, {"modelspec.predict_key": "v"}, ("sdxl", 4, "v", True), "predict_key"),
        (
            "a",
            SDXL,
            {"modelspec.prediction_type": "v", "ss_zero_terminal_snr": "False"},
            ("sdxl", 4, "v", False),
            "ss_zero_terminal_snr is False",
        ),
        ("a", SDXL, {"ss_v2": "True"}, ("sdxl", 4, "eps", False), "the file indicates no other"),
        ("x-vpred10", SDXL, None, ("sdxl", 4, "v", True), "only the file's name"),
        ("animeVpred_8steps", SDXL, None, ("sdxl", 4, "v", True), "only the file's name"),
        ("x-vpred-to-eps", SDXL, None, ("sdxl", 4, "eps", False), "the file indicates no other"),
        ("x-vpred", SDXL, {"modelspec.prediction_type": "epsilon"}, ("sdxl", 4, "eps", False), "epsilon"),
        ("a", SD1, None, ("sd15", 4, "eps", False), "Stable Diffusion 1"),
        (
            "a",
            SDXL | {"model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)},
            None,
            ("sdxl", 9, "eps", False),
            "9 channels",
        ),
    ],
)
def test_a_file_is_detected_by_its_header(tmp_path, name, shapes, metadata, expected, evidence):
    detection = detect(hollow(tmp_path / f"{name}.safetensors", shapes, metadata))
    assert (detection.family, detection.channels, detection.prediction, detection.zsnr) == expected
    assert evidence in " ".join(detection.evidence)
    assert detection.missing == ()


@pytest.mark.parametrize(
    ("name", "shapes", "configured", "expected"),
    [
        ("a", SDXL, ("v", True), ("v", True)),
        ("a", SDXL, ("v", None), ("v", True)),
        ("a", SDXL, ("v", False), ("v", False)),
        ("a", SD1, ("v", None), ("v", False)),
        ("a", SDXL | MARKERS, ("eps", None), ("eps", False)),
        ("a", SDXL | MARKERS, (None, False), ("v", False)),
        ("noobai-rf-v3", SDXL, ("eps", None), ("eps", False)),
    ],
)
def test_the_configuration_wins_and_is_named_as_evidence(tmp_path, name, shapes, configured, expected):
    detection = detect(hollow(tmp_path / f"{name}.safetensors", shapes), *configured)
    assert (detection.prediction, detection.zsnr) == expected
    assert "configuration" in detection.evidence[-1]


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, ("v", True)),
        ({"prediction_type": "v_prediction"}, ("v", False)),
        ({"prediction_type": "epsilon"}, ("eps", False)),
        (None, ("eps", False)),
    ],
)
def test_a_scheduler_config_decides_the_prediction_of_a_diffusers_folder(tmp_path, scheduler, expected):
    for name, shapes in FOLDER.items():
        file = tmp_path / f"{name}.safetensors"
        file.parent.mkdir()
        hollow(file, shapes)
    if scheduler is not None:
        (tmp_path / "scheduler").mkdir()
        (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    detection = detect(tmp_path)
    assert (detection.family, detection.layout, detection.missing) == ("sdxl", "diffusers", ())
    assert (detection.prediction, detection.zsnr) == expected


def test_zero_terminal_snr_with_noise_prediction_is_refused(tmp_path):
    for prediction in ("eps", "edm_v"):
        with pytest.raises(WeightsError, match="zero terminal SNR"):
            detect(hollow(tmp_path / "a.safetensors", SDXL), prediction, True)


def test_missing_components_are_listed(tmp_path):
    bare = without(without(SDXL, "first_stage"), "conditioner")
    assert detect(hollow(tmp_path / "a.safetensors", bare)).missing == (
        "vae",
        "text_encoder",
        "text_encoder_2",
    )


@pytest.mark.parametrize(
    ("name", "shapes", "reason"),
    [
        ("a", {"lora_unet_down_blocks_0.lora_down.weight": (4, 320)}, "a LoRA"),
        ("a", {"unet.down_blocks.0.to_q.lora_A.weight": (4, 320)}, "a LoRA"),
        ("a", SDXL | {"edm_mean": (4,)}, "Playground"),
        ("a", {"control_model.input_blocks.0.0.weight": (4,)}, "a ControlNet"),
        ("a", {"model.diffusion_model.double_blocks.0.img_attn.proj.weight": (4,)}, "a Flux model"),
        ("a", SDXL | {"ztsnr": (0,)}, "ztsnr without v_pred"),
        ("a", SDXL | {"model.diffusion_model.label_emb.0.0.weight": (1280, 5632)}, "width 5632"),
        ("noobai-rf-v3", SDXL, "rectified-flow"),
        ("a", SDXL | {"first_stage_model.decoder.conv_in.weight": (512, 32, 3, 3)}, "32 latent channels"),
        ("a", SDXL | {"model.diffusion_model.input_blocks.0.0.weight": (320, 8, 3, 3)}, "8 input channels"),
        ("a", SDXL | {"model.diffusion_model.input_blocks.0.0.weight": (384, 4, 3, 3)}, "refiner"),
        ("a", without(SDXL, "middle_block"), "SSD-1B"),
        (
            "a",
            SD1
            | {"model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024)},
            "Stable Diffusion 2",
        ),
        ("a", {"first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3)}, "a VAE alone"),
        ("a", {"something.else": (4,)}, "no UNet"),
    ],
)
def test_a_model_that_cannot_run_is_refused_by_name(tmp_path, name, shapes, reason):
    with pytest.raises(WeightsError, match=reason) as refused:
        detect(hollow(tmp_path / f"{name}.safetensors", shapes))
    assert str(refused.value).startswith(f"{name}.safetensors: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.ckpt", b"anything", "pickle"),
        ("a.safetensors", b"PK\x03\x04rest of a zip of a pickle, 40 bytes long", "pickle"),
        ("a.safetensors", b"\x80\x02}q\x00rest of a pickle, long enough to read", "pickle"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.safetensors", b"<!doctype html><html><body>403</body></html>", "web page"),
        ("a.safetensors", b"", "empty"),
        ("a.safetensors", b"GGUF\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "GGUF"),
        ("a.safetensors", struct.pack("<Q", 9999) + b'{"a":', "truncated"),
        ("a.safetensors", struct.pack("<Q", 9) + b"{not json", "not JSON"),
    ],
)
def test_a_file_of_another_format_is_refused_by_name(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=reason):
        read_header(path)


def test_a_truncated_download_is_refused_before_it_is_loaded(tmp_path):
    path = hollow(tmp_path / "a.safetensors", SDXL)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(WeightsError, match="download it again"):
        read_header(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        detect(tmp_path / "nothing.safetensors")


def test_an_embedded_architecture_with_an_unknown_key_does_not_reach_a_constructor(tmp_path, demo_file):
    from pipelines.weights.load import load_weights

    checkpoint = open_checkpoint(demo_file)
    architecture = json.loads(checkpoint.metadata[METADATA_KEY])
    architecture["unet"]["surprise"] = 1
    shapes = {key: ref.shape for key, ref in checkpoint.tensors.items()}
    path = hollow(tmp_path / "a.safetensors", shapes, {METADATA_KEY: json.dumps(architecture)})
    with pytest.raises(WeightsError, match="surprise"):
        load_weights(path)


def test_only_a_change_of_the_weights_changes_the_fingerprint(tmp_path):
    tensors = {"a": torch.zeros(1000), "b": torch.ones(3)}
    for name, value in (("one", 0.0), ("two", 0.0), ("three", 1.0)):
        tensors["a"][500] = value
        save_file(tensors, tmp_path / f"{name}.safetensors")
    one, two, three = (fingerprint(tmp_path / f"{name}.safetensors") for name in ("one", "two", "three"))
    assert one == two != three
    assert len(one) == 8
    assert one == one.upper()


def test_detection_reads_only_the_header(tmp_path):
    path = hollow(tmp_path / "a.safetensors", SDXL | {"model.diffusion_model.out.2.weight": (2_000_000_000,)})
    start = time.process_time()
    detect(path)
    assert time.process_time() - start < 1.0  # reading 4 GB would take longer than a second of processor time
