import pytest
from checkpoint_files import hollow_folder

from pipelines.errors import WeightsError
from pipelines.weights.detect import detect

SDXL_BETAS = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "trained_betas": None,
}
COSXL = {"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction", "sigma_data": 1.0}


@pytest.mark.parametrize(
    ("scheduler", "prediction", "zsnr", "is_assumed"),
    [
        (
            {"_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon"} | SDXL_BETAS,
            "eps",
            False,
            True,
        ),
        ({"_class_name": "LCMScheduler", "prediction_type": "epsilon"} | SDXL_BETAS, "eps", False, True),
        ({"_class_name": "FlaxPNDMScheduler", "prediction_type": None}, "eps", False, True),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, "v", True, False),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": "false"}, "v", False, False),
        (COSXL, "edm_v", False, False),
    ],
)
def test_schedulers_of_networks_that_can_run(tmp_path, scheduler, prediction, zsnr, is_assumed):
    detection = detect(hollow_folder(tmp_path / "a", scheduler))
    assert (detection.prediction, detection.zsnr, detection.is_assumed) == (prediction, zsnr, is_assumed)


@pytest.mark.parametrize(
    ("scheduler", "sigma_range"),
    [
        (COSXL | {"sigma_min": 0.002, "sigma_max": 120.0}, (0.002, 120.0)),
        (
            COSXL | {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_min": 0.01, "sigma_max": 60},
            (0.01, 60.0),
        ),
        (COSXL, (0.002, 80.0)),  # diffusers' default
        (
            {
                "_class_name": "EulerDiscreteScheduler",
                "prediction_type": "v_prediction",
                "timestep_type": "continuous",
                "sigma_min": 0.02,
                "sigma_max": 700.0,
            },
            (0.02, 700.0),
        ),
    ],
)
def test_an_edm_scheduler_with_velocity_is_cosxls(tmp_path, scheduler, sigma_range):
    detection = detect(hollow_folder(tmp_path / "a", scheduler))
    assert (detection.prediction, detection.sigma_range) == ("edm_v", sigma_range)


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (
            {
                "_class_name": "EDMDPMSolverMultistepScheduler",
                "prediction_type": "epsilon",
                "sigma_data": 0.5,
            },
            "Playground",
        ),
        ({"_class_name": "EDMEulerScheduler"}, "Playground"),
        (COSXL | {"sigma_data": 0.5}, "EDM.*sigma_data 0.5"),
        (COSXL | {"sigma_data": 10**400}, "EDM.*sigma_data 1000"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "rectified-flow"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "rectified-flow"),
        ({"prediction_type": "flow_prediction"}, "rectified-flow"),
        ({"prediction_type": "sample"}, "predicts x0"),
        ({"prediction_type": "banana"}, "unknown prediction.*'banana'"),
        (
            {"_class_name": "CMStochasticIterativeScheduler"},
            "unknown prediction.*CMStochasticIterativeScheduler",
        ),
        ({"_class_name": ["mine", "MyScheduler"]}, "unknown prediction.*MyScheduler"),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": "maybe"}, "contradictory.*'maybe'"),
        ({"prediction_type": "epsilon", "rescale_betas_zero_snr": True}, "contradictory"),
    ],
)
def test_a_scheduler_of_another_kind_is_refused_unless_the_prediction_is_set(tmp_path, scheduler, reason):
    path = hollow_folder(tmp_path / "a", scheduler)
    with pytest.raises(WeightsError, match=f"{reason}.*`prediction`"):
        detect(path)
    assert detect(path, "eps").prediction == "eps"


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        ({"beta_schedule": "linear"}, "beta_schedule is linear"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "squaredcos_cap_v2"),
        ({"beta_end": 0.02}, "beta_end is 0.02"),
        ({"beta_end": 10**400}, "beta_end is 1000"),
        ({"beta_start": "0.00085"}, "beta_start"),
        ({"trained_betas": [0.1]}, "trained_betas"),
        ({"num_train_timesteps": 4000}, "num_train_timesteps is 4000"),
    ],
)
def test_another_noise_table_is_refused_whatever_the_prediction(tmp_path, scheduler, reason):
    path = hollow_folder(tmp_path / "a", scheduler)
    for prediction in (None, "eps", "v"):
        with pytest.raises(WeightsError, match=f"{reason}.*scheduler_config.json"):
            detect(path, prediction)
