import pytest
import torch
from checkpoint_files import CONV_IN, CROSS, OUT, SD1, SDXL, hollow, same_bits, saved, three, weights
from safetensors.torch import load_file

from pipelines.errors import WeightsError
from pipelines.weights.checkpoint import SIZES, open_checkpoint, read_header
from pipelines.weights.detect import detect
from pipelines.weights.key_map import UNET
from pipelines.weights.merge import merge_inpainting

PARTS = {key: shape for key, shape in SDXL.items() if not key.startswith(UNET)}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fine_tune_that_learned_nothing_leaves_the_inpainting_unet_to_the_bit(tmp_path, dtype):
    inpaint = weights(1, 9, dtype)
    inpaint[OUT][0] = -0.0
    base = weights(3, 4, dtype)
    merged = merge_inpainting(
        saved(tmp_path / "inpaint.safetensors", inpaint),
        saved(tmp_path / "tune.safetensors", base),
        saved(tmp_path / "base.safetensors", base),
        tmp_path / "result.safetensors",
    )
    result = load_file(merged.output)
    assert result.keys() == inpaint.keys()
    assert all(same_bits(result[key], inpaint[key]) for key in inpaint)


@pytest.mark.parametrize("inpaint_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("base_dtype", DTYPES)
def test_what_was_learned_is_added_in_float32_and_cast_once(tmp_path, inpaint_dtype, dtype, base_dtype):
    inpaint, tune, base = weights(1, 9, inpaint_dtype), weights(2, 4, dtype), weights(3, 4, base_dtype)
    paths = three(tmp_path, inpaint, tune, base)
    result = load_file(merge_inpainting(*paths, tmp_path / "result.safetensors").output)
    learned = {key: tune[key].float() - base[key].float() for key in tune}
    for key in tune.keys() - {CONV_IN}:
        assert same_bits(result[key], (inpaint[key].float() + learned[key]).to(dtype)), key
    first, old = result[CONV_IN], inpaint[CONV_IN].float()
    assert first.shape == (320, 9, 3, 3)
    assert same_bits(first[:, :4], (old[:, :4] + learned[CONV_IN]).to(dtype))
    assert same_bits(first[:, 4:], old[:, 4:].to(dtype))


def test_each_tensor_takes_the_dtype_that_the_fine_tune_has_it_in(tmp_path):
    paths = three(tmp_path, fine_tune={OUT: weights(2)[OUT].float()})
    result = load_file(merge_inpainting(*paths, tmp_path / "result.safetensors").output)
    assert (result[OUT].dtype, result[CROSS].dtype) == (torch.float32, torch.float16)


def test_vae_encoders_and_markers_are_the_fine_tunes_own_bytes(tmp_path):
    kinds = (torch.float32, torch.bfloat16, torch.float8_e4m3fn)
    parts = {
        key: torch.randn(shape).to(dtype) for (key, shape), dtype in zip(PARTS.items(), kinds, strict=True)
    }
    parts |= {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0, dtype=torch.float16)}
    parts["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(77)
    parts["conditioner.embedders.1.odd"] = torch.ones(3, dtype=torch.bfloat16)
    foreign = {key: torch.randn(PARTS[key]).half() for key in PARTS}
    paths = three(
        tmp_path, inpaint=foreign, fine_tune=parts | {"model_ema.decay": torch.ones(1)}, base=foreign
    )
    merged = merge_inpainting(*paths, tmp_path / "result.safetensors")
    result = load_file(merged.output)
    assert result.keys() == weights(2).keys() | parts.keys()
    assert all(same_bits(result[key], parts[key]) for key in parts)
    assert (merged.summed, merged.copied) == (4, 7)
    entries = read_header(merged.output).tensors.values()
    assert all(entry.start % SIZES[entry.dtype] == 0 for entry in entries)  # or reading would have to copy
    found = detect(merged.output)
    assert found == merged.identity
    assert (found.channels, found.prediction, found.zsnr, found.missing) == (9, "v", True, ())


def test_a_fine_tune_of_a_unet_alone_gives_a_unet_alone(tmp_path):
    merged = merge_inpainting(*three(tmp_path), tmp_path / "result.safetensors")
    assert load_file(merged.output).keys() == weights(2).keys()
    assert merged.identity.missing == ("vae", "text_encoder", "text_encoder_2")


@pytest.mark.parametrize(
    ("name", "told", "markers", "expected"),
    [
        ("a", {}, {}, ("eps", False)),
        ("a", {"modelspec.prediction_type": "v"}, {}, ("v", True)),
        ("a", {"modelspec.prediction_type": "v", "ss_zero_terminal_snr": "False"}, {}, ("v", False)),
        ("a-vpred", {}, {}, ("v", True)),
        ("a-vpred", {"modelspec.prediction_type": "epsilon"}, {}, ("eps", False)),
        ("a", {}, {"v_pred": torch.zeros(0)}, ("v", False)),
        ("a", {}, {"edm_vpred.sigma_max": torch.tensor(120.0)}, ("edm_v", False)),
    ],
)
def test_the_result_predicts_what_the_fine_tune_does_whatever_it_is_called(
    tmp_path, name, told, markers, expected
):
    inpaint, _, base = three(tmp_path)
    tune = saved(tmp_path / f"{name}.safetensors", weights(2) | markers, told)
    for output in ("result", "x-vpred"):
        merge_inpainting(inpaint, tune, base, tmp_path / f"{output}.safetensors")
        found = detect(tmp_path / f"{output}.safetensors")
        assert (found.channels, found.prediction, found.zsnr) == (9, *expected)


def test_the_metadata_tells_of_the_merge_and_keeps_no_hash(tmp_path):
    told = {
        "format": "pt",
        "modelspec.architecture": "stable-diffusion-xl-v1-base",
        "modelspec.date": "2024-01-01",
        "modelspec.hash_sha256": "0x00",
        "modelspec.license": "FAIPL",
        "modelspec.title": "A Tune",
        "sshs_model_hash": "00",
    }
    merged = merge_inpainting(*three(tmp_path, metadata=told), tmp_path / "result.safetensors")
    assert open_checkpoint(merged.output).metadata == {
        "format": "pt",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/inpaint",
        "modelspec.license": "FAIPL",
        "modelspec.merged_from": "inpaint, A Tune, base",
        "modelspec.prediction_type": "epsilon",
        "modelspec.title": "A Tune inpainting",
    }


WIDE = {OUT: torch.zeros(4, 640, 3, 3).half()}
REFUSALS = [
    ("inpaint", {CONV_IN: weights(1)[CONV_IN]}, r"inpaint.*4 input channels.*must have 9"),
    ("fine_tune", {CONV_IN: weights(1, 9)[CONV_IN]}, r"tune.*9 input channels.*must have 4"),
    ("base", {CONV_IN: weights(1, 9)[CONV_IN]}, r"base.*9 input channels.*must have 4"),
    ("inpaint", WIDE, r"inpaint.*out\.2\.weight.*\(4, 640, 3, 3\).*\(4, 320, 3, 3\)"),
    ("fine_tune", WIDE, r"base.*out\.2\.weight.*\(4, 320, 3, 3\).*tune.*\(4, 640, 3, 3\)"),
    ("base", WIDE, r"base.*out\.2\.weight.*\(4, 640, 3, 3\).*\(4, 320, 3, 3\)"),
    ("inpaint", {CONV_IN: torch.zeros(160, 9, 3, 3).half()}, r"inpaint.*\(160, 9, 3, 3\).*\(320, 9, 3, 3\)"),
    ("inpaint", {f"{UNET}more": torch.zeros(1).half()}, r"tune.*1 missing.*diffusion_model\.more"),
    ("fine_tune", {f"{UNET}more": torch.zeros(1).half()}, r"inpaint.*1 missing.*diffusion_model\.more"),
    (
        "fine_tune",
        {OUT: torch.zeros(4, 320, 3, 3).to(torch.float8_e4m3fn)},
        r"tune.*out\.2\.weight is F8_E4M3",
    ),
    ("base", {OUT: torch.zeros(4, 320, 3, 3, dtype=torch.int32)}, r"base.*out\.2\.weight is I32;"),
    ("inpaint", {OUT: torch.full((4, 320, 3, 3), torch.inf)}, r"inpaint.*out\.2\.weight holds NaN or inf"),
    ("base", {OUT: torch.full((4, 320, 3, 3), torch.nan)}, r"base.*out\.2\.weight holds NaN or inf"),
    ("inpaint", {OUT: torch.full((4, 320, 3, 3), 1e6)}, r"tune.*out\.2\.weight: the sum is too large.*F16"),
    ("fine_tune", {"ztsnr": torch.zeros(0)}, "ztsnr without v_pred"),
    ("base", {"edm_mean": torch.zeros(4)}, "Playground"),
]


@pytest.mark.parametrize(("which", "change", "reason"), REFUSALS)
def test_what_cannot_be_merged_is_refused_by_name_and_leaves_nothing(tmp_path, which, change, reason):
    paths = three(tmp_path, **{which: change})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(WeightsError, match=reason) as refused:
        merge_inpainting(*paths, tmp_path / "result.safetensors")
    assert "\n" not in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", [0, 1, 2])
def test_pickles_and_other_families_are_refused_in_every_place(tmp_path, place):
    (tmp_path / "a.ckpt").write_bytes(b"PK\x03\x04")
    nine = {CONV_IN: (320, 9 if place == 0 else 4, 3, 3)}
    old = hollow(tmp_path / "old.safetensors", SD1 | nine)
    for stranger, reason in ((tmp_path / "a.ckpt", "a pickle can run code"), (old, "Stable Diffusion 1")):
        paths = list(three(tmp_path))
        paths[place] = stranger
        with pytest.raises(WeightsError, match=reason):
            merge_inpainting(paths[0], paths[1], paths[2], tmp_path / "result.safetensors")


def test_no_file_is_overwritten_and_no_input_is_the_output(tmp_path):
    paths = three(tmp_path)
    other = saved(tmp_path / "other.safetensors", {"a": torch.ones(1)})
    before = {path: path.read_bytes() for path in (*paths, other)}
    link = tmp_path / "link.safetensors"
    link.symlink_to(tmp_path / "nowhere")
    for output, reason in [(other, "exists already"), (link, "exists already")] + [
        (path, "one of the models to merge") for path in (*paths, tmp_path / "x" / ".." / paths[1].name)
    ]:
        with pytest.raises(WeightsError, match=reason):
            merge_inpainting(*paths, output)
    assert {path: path.read_bytes() for path in before} == before


def test_an_output_that_cannot_be_written_or_read_again_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"r\.safetensors: cannot be written: No such file"):
        merge_inpainting(*three(tmp_path), tmp_path / "nowhere" / "r.safetensors")
    with pytest.raises(WeightsError, match=r"end in \.safetensors"):
        merge_inpainting(*three(tmp_path), tmp_path / "r.ckpt")
