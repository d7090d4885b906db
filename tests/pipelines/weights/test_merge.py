import pytest
import torch
from checkpoint_files import (
    CONV_IN,
    CONV_OUT,
    CROSS,
    SD1,
    SDXL,
    are_identical,
    hollow,
    random_unet,
    save,
    save_sources,
)
from safetensors.torch import load_file

from pipelines.errors import WeightsError
from pipelines.weights.checkpoint import UNET_PREFIX, open_checkpoint
from pipelines.weights.detect import detect
from pipelines.weights.header import DTYPE_BITS, read_header
from pipelines.weights.merge import merge_inpainting

COMPANIONS = {key: shape for key, shape in SDXL.items() if not key.startswith(UNET_PREFIX)}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fine_tune_that_learned_nothing_reproduces_the_inpainting_unet_exactly(tmp_path, dtype):
    inpaint = random_unet(1, 9, dtype)
    inpaint[CONV_OUT][0] = -0.0
    base = random_unet(3, 4, dtype)
    merged = merge_inpainting(
        save(tmp_path / "inpaint.safetensors", inpaint),
        save(tmp_path / "tune.safetensors", base),
        save(tmp_path / "base.safetensors", base),
        tmp_path / "result.safetensors",
    )
    result = load_file(merged.output)
    assert result.keys() == inpaint.keys()
    assert all(are_identical(result[key], inpaint[key]) for key in inpaint)


@pytest.mark.parametrize("inpaint_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("base_dtype", DTYPES)
def test_the_difference_is_added_in_float32_and_cast_once(tmp_path, inpaint_dtype, dtype, base_dtype):
    inpaint, tune, base = (
        random_unet(1, 9, inpaint_dtype),
        random_unet(2, 4, dtype),
        random_unet(3, 4, base_dtype),
    )
    paths = save_sources(tmp_path, inpaint, tune, base)
    result = load_file(merge_inpainting(*paths, tmp_path / "result.safetensors").output)
    difference = {key: tune[key].float() - base[key].float() for key in tune}
    for key in tune.keys() - {CONV_IN}:
        assert are_identical(result[key], (inpaint[key].float() + difference[key]).to(dtype)), key
    conv_in, original = result[CONV_IN], inpaint[CONV_IN].float()
    assert conv_in.shape == (320, 9, 3, 3)
    assert are_identical(conv_in[:, :4], (original[:, :4] + difference[CONV_IN]).to(dtype))
    assert are_identical(conv_in[:, 4:], original[:, 4:].to(dtype))


def test_each_tensor_has_the_dtype_of_the_fine_tune(tmp_path):
    paths = save_sources(tmp_path, fine_tune={CONV_OUT: random_unet(2)[CONV_OUT].float()})
    result = load_file(merge_inpainting(*paths, tmp_path / "result.safetensors").output)
    assert (result[CONV_OUT].dtype, result[CROSS].dtype) == (torch.float32, torch.float16)


def test_vae_text_encoders_and_markers_are_copied_from_the_fine_tune(tmp_path):
    kinds = (torch.float32, torch.bfloat16, torch.float8_e4m3fn)
    parts = {
        key: torch.randn(shape).to(dtype)
        for (key, shape), dtype in zip(COMPANIONS.items(), kinds, strict=True)
    }
    parts |= {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0, dtype=torch.float16)}
    parts["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(77)
    parts["conditioner.embedders.1.odd"] = torch.ones(3, dtype=torch.bfloat16)
    foreign = {key: torch.randn(COMPANIONS[key]).half() for key in COMPANIONS}
    paths = save_sources(
        tmp_path, inpaint=foreign, fine_tune=parts | {"model_ema.decay": torch.ones(1)}, base=foreign
    )
    merged = merge_inpainting(*paths, tmp_path / "result.safetensors")
    result = load_file(merged.output)
    assert result.keys() == random_unet(2).keys() | parts.keys()
    assert all(are_identical(result[key], parts[key]) for key in parts)
    assert (merged.summed, merged.copied) == (4, 7)
    entries = read_header(merged.output).tensors.values()
    assert all(
        entry.start % (DTYPE_BITS[entry.dtype] // 8) == 0 for entry in entries
    )  # otherwise reading has to copy
    detection = detect(merged.output)
    assert detection == merged.detection
    assert (detection.channels, detection.prediction, detection.zsnr) == (9, "v", True)
    assert detection.missing == ()


def test_a_fine_tune_with_only_a_unet_gives_only_a_unet(tmp_path):
    merged = merge_inpainting(*save_sources(tmp_path), tmp_path / "result.safetensors")
    assert load_file(merged.output).keys() == random_unet(2).keys()
    assert merged.detection.missing == ("vae", "text_encoder", "text_encoder_2")


@pytest.mark.parametrize(
    ("name", "metadata", "markers", "expected"),
    [
        ("a", {"modelspec.prediction_type": "v"}, {}, ("v", True)),
        ("a", {"modelspec.prediction_type": "v", "ss_zero_terminal_snr": "False"}, {}, ("v", False)),
        ("a-vpred", {}, {}, ("v", True)),
        ("a-vpred", {"modelspec.prediction_type": "epsilon"}, {}, ("eps", False)),
        ("a", {}, {"v_pred": torch.zeros(0)}, ("v", False)),
        ("a", {}, {"edm_vpred.sigma_max": torch.tensor(120.0)}, ("edm_v", False)),
    ],
)
def test_the_result_has_the_prediction_of_the_fine_tune_under_any_file_name(
    tmp_path, name, metadata, markers, expected
):
    inpaint, _, base = save_sources(tmp_path)
    tune = save(tmp_path / f"{name}.safetensors", random_unet(2) | markers, metadata)
    for output in ("result", "x-vpred"):
        merge_inpainting(inpaint, tune, base, tmp_path / f"{output}.safetensors")
        detection = detect(tmp_path / f"{output}.safetensors")
        assert (detection.channels, detection.prediction, detection.zsnr) == (9, *expected)


def test_a_prediction_that_is_only_assumed_is_not_recorded(tmp_path):
    merged = merge_inpainting(*save_sources(tmp_path), tmp_path / "result.safetensors")
    assert merged.detection.is_assumed


def test_the_metadata_records_the_merge_and_keeps_no_hash(tmp_path):
    metadata = {
        "format": "pt",
        "modelspec.architecture": "stable-diffusion-xl-v1-base",
        "modelspec.date": "2024-01-01",
        "modelspec.hash_sha256": "0x00",
        "modelspec.license": "FAIPL",
        "modelspec.title": "A Tune",
        "sshs_model_hash": "00",
    }
    merged = merge_inpainting(*save_sources(tmp_path, metadata=metadata), tmp_path / "result.safetensors")
    assert open_checkpoint(merged.output).metadata == {
        "format": "pt",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/inpaint",
        "modelspec.license": "FAIPL",
        "modelspec.merged_from": "inpaint, A Tune, base",
        "modelspec.title": "A Tune inpainting",
    }


WIDE = {CONV_OUT: torch.zeros(4, 640, 3, 3).half()}
REFUSALS = [
    ("inpaint", {CONV_IN: random_unet(1)[CONV_IN]}, r"inpaint.*4 input channels.*must have 9"),
    ("fine_tune", {CONV_IN: random_unet(1, 9)[CONV_IN]}, r"tune.*9 input channels.*must have 4"),
    ("base", {CONV_IN: random_unet(1, 9)[CONV_IN]}, r"base.*9 input channels.*must have 4"),
    ("inpaint", WIDE, r"inpaint.*out\.2\.weight.*\(4, 640, 3, 3\).*\(4, 320, 3, 3\)"),
    ("fine_tune", WIDE, r"base.*out\.2\.weight.*\(4, 320, 3, 3\).*tune.*\(4, 640, 3, 3\)"),
    ("base", WIDE, r"base.*out\.2\.weight.*\(4, 640, 3, 3\).*\(4, 320, 3, 3\)"),
    ("inpaint", {CONV_IN: torch.zeros(160, 9, 3, 3).half()}, r"inpaint.*\(160, 9, 3, 3\).*\(320, 9, 3, 3\)"),
    ("inpaint", {f"{UNET_PREFIX}more": torch.zeros(1).half()}, r"tune.*1 missing.*diffusion_model\.more"),
    (
        "fine_tune",
        {f"{UNET_PREFIX}more": torch.zeros(1).half()},
        r"inpaint.*1 missing.*diffusion_model\.more",
    ),
    (
        "fine_tune",
        {CONV_OUT: torch.zeros(4, 320, 3, 3).to(torch.float8_e4m3fn)},
        r"tune.*out\.2\.weight is F8_E4M3",
    ),
    ("base", {CONV_OUT: torch.zeros(4, 320, 3, 3, dtype=torch.int32)}, r"base.*out\.2\.weight is I32;"),
    (
        "inpaint",
        {CONV_OUT: torch.full((4, 320, 3, 3), torch.inf)},
        r"inpaint.*out\.2\.weight contains NaN or inf",
    ),
    ("base", {CONV_OUT: torch.full((4, 320, 3, 3), torch.nan)}, r"base.*out\.2\.weight contains NaN or inf"),
    (
        "inpaint",
        {CONV_OUT: torch.full((4, 320, 3, 3), 1e6)},
        r"tune.*out\.2\.weight: the sum is too large.*F16",
    ),
    ("fine_tune", {"ztsnr": torch.zeros(0)}, "ztsnr without v_pred"),
    ("base", {"edm_mean": torch.zeros(4)}, "Playground"),
]


@pytest.mark.parametrize(("which", "change", "reason"), REFUSALS)
def test_models_that_cannot_be_merged_are_refused_and_leave_no_file(tmp_path, which, change, reason):
    paths = save_sources(tmp_path, **{which: change})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(WeightsError, match=reason) as refused:
        merge_inpainting(*paths, tmp_path / "result.safetensors")
    assert "\n" not in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("position", [0, 1, 2])
def test_pickles_and_other_families_are_refused_in_every_position(tmp_path, position):
    (tmp_path / "a.ckpt").write_bytes(b"PK\x03\x04")
    conv_in = {CONV_IN: (320, 9 if position == 0 else 4, 3, 3)}
    sd1 = hollow(tmp_path / "sd1.safetensors", SD1 | conv_in)
    for path, reason in ((tmp_path / "a.ckpt", "a pickle can run code"), (sd1, "Stable Diffusion 1")):
        paths = list(save_sources(tmp_path))
        paths[position] = path
        with pytest.raises(WeightsError, match=reason):
            merge_inpainting(paths[0], paths[1], paths[2], tmp_path / "result.safetensors")


def test_no_file_is_overwritten_and_no_input_may_be_the_output(tmp_path):
    paths = save_sources(tmp_path)
    other = save(tmp_path / "other.safetensors", {"a": torch.ones(1)})
    before = {path: path.read_bytes() for path in (*paths, other)}
    link = tmp_path / "link.safetensors"
    link.symlink_to(tmp_path / "nowhere")
    for output, reason in [(other, "exists already"), (link, "exists already")] + [
        (path, "one of the models to merge") for path in (*paths, tmp_path / "x" / ".." / paths[1].name)
    ]:
        with pytest.raises(WeightsError, match=reason):
            merge_inpainting(*paths, output)
    assert {path: path.read_bytes() for path in before} == before


def test_an_output_that_cannot_be_written_or_has_another_suffix_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match=r"r\.safetensors: cannot be written: File exists"):
        merge_inpainting(*save_sources(tmp_path), tmp_path / "file" / "r.safetensors")
    with pytest.raises(WeightsError, match=r"end in \.safetensors"):
        merge_inpainting(*save_sources(tmp_path), tmp_path / "r.ckpt")
