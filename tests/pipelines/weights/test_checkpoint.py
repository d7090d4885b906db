import json
import time

import pytest
import torch
from checkpoint_files import FOLDER, MARKERS, SD1, SDXL, hollow
from safetensors.torch import save_file

from pipelines.errors import WeightsError
from pipelines.weights.architecture import METADATA_KEY
from pipelines.weights.checkpoint import component_files, fingerprint, open_checkpoint
from pipelines.weights.detect import detect


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
    path = hollow(
        tmp_path / "a.safetensors", SDXL | {"model.diffusion_model.out.2.weight": (50_000_000_000,)}
    )
    start = time.process_time()
    detect(path)
    assert time.process_time() - start < 5  # reading 100 GB would take longer


@pytest.mark.parametrize(
    ("present", "chosen"),
    [
        (["", ".fp16"], [""]),
        ([".fp16", ".bf16"], [".bf16"]),
        ([".fp16", ".fp32"], [".fp32"]),
        ([".non_ema"], [".non_ema"]),
        ([".fp8"], [".fp8"]),
        ([".ema_16"], [".ema_16"]),
        ([".fp16-00001-of-00002", ".fp16-00002-of-00002"], [".fp16-00001-of-00002", ".fp16-00002-of-00002"]),
        (["-00001-of-00002.bf16", "-00002-of-00002.bf16"], ["-00001-of-00002.bf16", "-00002-of-00002.bf16"]),
        (["", "-00001-of-00002"], [""]),
        # left over from another download
        (["-00001-of-00003", "-00001-of-00002", "-00002-of-00002"], ["-00001-of-00002", "-00002-of-00002"]),
    ],
)
def test_the_most_accurate_variant_of_a_component_is_read(tmp_path, present, chosen):
    for name in (*present, ".index"):
        (tmp_path / f"diffusion_pytorch_model{name}.{'json' if name == '.index' else 'safetensors'}").touch()
    names = [file.name for file in component_files(tmp_path)]
    assert names == [f"diffusion_pytorch_model{name}.safetensors" for name in chosen]


@pytest.mark.parametrize(
    ("present", "reason"),
    [
        ([], "without model.safetensors or diffusion_pytorch_model.safetensors"),
        (["other.safetensors"], "without model.safetensors"),
        (["model.bin"], "a pickle can run code"),
        (["model-00002-of-00003.safetensors"], "only 1 of 3 shards are present"),
        (["model.bf16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"], "only 1 of 2"),
        (
            [f"model-{k:05}-of-{n:05}.safetensors" for n in (2, 3) for k in range(1, n + 1)],
            "of 2 and of 3 files",
        ),
    ],
)
def test_a_component_without_all_its_files_is_refused(tmp_path, present, reason):
    for name in present:
        (tmp_path / name).touch()
    with pytest.raises(WeightsError, match=reason):
        component_files(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    (tmp_path / "unet").mkdir()
    for number in (1, 2):
        hollow(
            tmp_path / "unet" / f"diffusion_pytorch_model-0000{number}-of-00002.safetensors",
            {"conv_in.weight": (4,)},
        )
    with pytest.raises(WeightsError, match="in another shard too"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{"])
def test_a_scheduler_config_that_is_no_object_is_refused(tmp_path, text):
    (tmp_path / "unet").mkdir()
    (tmp_path / "scheduler").mkdir()
    hollow(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", {"conv_in.weight": (4,)})
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"scheduler_config\.json: not "):
        open_checkpoint(tmp_path)
