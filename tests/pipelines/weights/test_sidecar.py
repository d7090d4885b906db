import pytest
from checkpoint_files import MARKERS, SD1, SDXL, hollow

from pipelines.errors import WeightsError
from pipelines.weights.detect import detect

SGM = "target: sgm.modules.diffusionmodules.denoiser_scaling."


def write(path, text, shapes=SDXL, suffix=".yaml"):
    path.with_suffix(suffix).write_bytes(text.encode() if isinstance(text, str) else text)
    return hollow(path, shapes)


@pytest.mark.parametrize(
    ("text", "prediction", "zsnr"),
    [
        ('model:\n  params:\n    parameterization: "v"\n', "v", False),
        ("parameterization: v # velocity", "v", False),
        ('{model: {params: {parameterization: "v", use_zero_snr: true}}}', "v", True),
        ("parameterization: eps", "eps", False),
        ("# parameterization: v\n", "eps", False),
        ("model:\n  base_learning_rate: 1.0e-04\n", "eps", False),
        ("timesteps: 1000\nlinear_start: 0.00085\nlinear_end: 0.0120\nscale_factor: 0.18215", "eps", False),
    ],
)
@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_the_yaml_of_the_same_stem_sets_the_prediction(tmp_path, text, prediction, zsnr, suffix):
    path = write(tmp_path / "EasyFluffV11.2.safetensors", text, SD1, suffix)
    detection = detect(path)
    assert (detection.prediction, detection.zsnr) == (prediction, zsnr)
    is_stated = "parameterization:" in text and not text.startswith("#")
    assert ("EasyFluffV11.2" in " ".join(detection.evidence)) == is_stated != detection.is_assumed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SGM + "VScaling", ("v", True)),
        (SGM + "EpsScaling", ("eps", False)),
        (SGM + "VScalingWithEDMcNoise", ("edm_v", False)),
    ],
)
def test_classes_of_stabilitys_code_are_understood(tmp_path, text, expected):
    detection = detect(write(tmp_path / "a.safetensors", text))
    assert (detection.prediction, detection.zsnr) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("parameterization: x0", "a.safetensors: a model that predicts x0.*a.yaml"),
        ("parameterization: banana", "unknown prediction.*'banana'"),
        (SGM + "EDMScaling", "EDM"),
        (SGM + "OwnScaling", "unknown prediction.*OwnScaling"),
        ("linear_end: 0.02", "a.yaml: it sets linear_end to 0.02; only 0.012"),
        ("scale_factor: 0.18215", "a.yaml: it sets scale_factor to 0.18215; only 0.13025"),
        ("x" * (1 << 20) + "y", "a.yaml: more than 1048576 bytes"),
        (b"\xff\xfep\0", "a.yaml: not UTF-8"),
    ],
)
def test_a_yaml_of_another_kind_is_refused(tmp_path, text, reason):
    with pytest.raises(WeightsError, match=reason):
        detect(write(tmp_path / "a.safetensors", text))


def test_it_comes_before_the_markers_as_its_users_setting(tmp_path):
    assert (
        detect(write(tmp_path / "a.safetensors", "parameterization: eps", SDXL | MARKERS)).prediction == "eps"
    )
