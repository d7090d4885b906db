import json

import pytest
from checkpoint_files import SD1, SDXL, hollow

from pipelines.errors import WeightsError
from pipelines.weights.detect import detect

PREDICTION = "modelspec.prediction_type"


@pytest.mark.parametrize(
    ("metadata", "prediction", "zsnr"),
    [
        ({PREDICTION: "v-zsnr"}, "v", True),
        ({PREDICTION: "V_Prediction"}, "v", True),
        ({PREDICTION: "v", "ss_zero_terminal_snr": "False"}, "v", False),
        ({PREDICTION: "EPS"}, "eps", False),
        ({PREDICTION: "edm_v"}, "edm_v", False),
        ({"modelspec.predict_key": "v"}, "v", True),
        ({"ss_v_parameterization": "True"}, "v", True),
        ({"ss_v_parameterization": "False"}, "eps", False),
        ({"v_parameterization": "1", "zsnr": "0"}, "v", False),
        ({"vpred": ""}, "v", True),
        ({"ss_zero_terminal_snr": "True"}, "v", True),
        ({"ot_config": json.dumps({"rescale_noise_scheduler_to_zero_terminal_snr": True})}, "v", True),
        ({"ot_config": json.dumps({"force_v_prediction": True})}, "v", True),
        ({"training_config": json.dumps({"model": {"prediction_type": "v_prediction"}})}, "v", True),
    ],
)
def test_what_trainers_write_is_evidence(tmp_path, metadata, prediction, zsnr):
    detection = detect(hollow(tmp_path / "a.safetensors", SDXL, metadata))
    assert (detection.prediction, detection.zsnr, detection.is_assumed) == (prediction, zsnr, False)


@pytest.mark.parametrize(
    "metadata",
    [
        {"ss_v2": "True"},
        {PREDICTION: ""},
        {"ss_zero_terminal_snr": "False"},
        {"ot_config": json.dumps({"force_v_prediction": False, "force_epsilon_prediction": False})},
        {"prompt": json.dumps({"3": {"inputs": {"prediction_type": "v"}}})},
        {"ss_tag_frequency": json.dumps({"10_a": {"vpred": 4}})},
        {"config": "{not json"},
        {"ss_" * 400_000 + "vpred": "1"},
        {"config": '{"a":' * 5000},
    ],
)
def test_what_does_not_describe_the_network_is_none(tmp_path, metadata):
    detection = detect(hollow(tmp_path / "a.safetensors", SDXL, metadata))
    assert (detection.prediction, detection.is_assumed) == ("eps", True)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({PREDICTION: "rectified_flow"}, "rectified-flow"),
        ({PREDICTION: "flow"}, "rectified-flow"),
        ({PREDICTION: "sd3"}, "rectified-flow"),
        ({"ss_flow_matching": "True"}, "rectified-flow"),
        ({"modelspec.noise_process": "flow", PREDICTION: "velocity"}, "rectified-flow"),
        (
            {"training_config": json.dumps({"scheduler": {"prediction_type": "flow_matching"}})},
            "rectified-flow",
        ),
        ({PREDICTION: "x0"}, "predicts x0"),
        ({PREDICTION: "sample"}, "predicts x0"),
        ({PREDICTION: "edm"}, "EDM"),
        ({PREDICTION: "banana"}, "unknown prediction.*'banana'"),
        ({"vpred": "maybe"}, "unknown prediction.*'maybe'"),
        ({PREDICTION: "v\nx"}, "unknown prediction"),
        ({PREDICTION: "epsilon", "ss_zero_terminal_snr": "True"}, "contradictory"),
        ({PREDICTION: "v", "ss_v_parameterization": "False"}, "contradictory"),
    ],
)
def test_a_word_that_cannot_run_or_is_not_understood_is_refused(tmp_path, metadata, reason):
    path = hollow(tmp_path / "a.safetensors", SDXL, metadata)
    with pytest.raises(WeightsError, match=f"{reason}.*`prediction`") as refused:
        detect(path)
    assert "\n" not in str(refused.value)
    assert detect(path, "v").prediction == "v"


def test_a_name_of_flow_counts_against_the_epsilon_that_trainers_write_unasked(tmp_path):
    path = hollow(tmp_path / "mugenRF.safetensors", SDXL, {PREDICTION: "epsilon"})
    with pytest.raises(WeightsError, match="rectified-flow"):
        detect(path)
    assert detect(hollow(path, SDXL, {PREDICTION: "v"})).prediction == "v"


@pytest.mark.parametrize("source", ["metadata", "name", "configuration"])
def test_one_rule_gives_stable_diffusion_1_no_zero_terminal_snr(tmp_path, source):
    name, metadata = (
        ("vpred" if source == "name" else "a"),
        {PREDICTION: "v"} if source == "metadata" else None,
    )
    path = hollow(tmp_path / f"{name}.safetensors", SD1, metadata)
    detection = detect(path, "v" if source == "configuration" else None)
    assert (detection.prediction, detection.zsnr) == ("v", False)


@pytest.mark.parametrize("configured", [None, "v"])
def test_what_the_file_says_of_the_terminal_snr_counts_whoever_sets_the_prediction(tmp_path, configured):
    metadata = {PREDICTION: "v", "ss_zero_terminal_snr": "True"}
    assert detect(hollow(tmp_path / "a.safetensors", SD1, metadata), configured).zsnr
    markers = {"v_pred": (0,)}
    assert not detect(hollow(tmp_path / "a.safetensors", SDXL | markers), configured).zsnr
