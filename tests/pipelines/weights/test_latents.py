import pytest
from checkpoint_files import hollow_folder

from pipelines.errors import WeightsError
from pipelines.weights.detect import detect
from pipelines.weights.latents import check_latents
from pipelines.weights.model_plan import plan_model


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"scaling_factor": 0.13025, "shift_factor": None, "latents_mean": None},
        {"latents_mean": [0, 0.0, 0, 0], "latents_std": [1, 1, 1, 1], "shift_factor": 0},
    ],
)
def test_the_familys_own_scale_is_accepted(tmp_path, config):
    assert detect(hollow_folder(tmp_path / "a", vae=config)).prediction == "eps"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"scaling_factor": 0.18215}, "scaling_factor 0.18215; only 0.13025"),
        ({"scaling_factor": "0.5"}, "scaling_factor 0.5"),
        ({"shift_factor": 0.1}, "shift_factor 0.1; only 0"),
        ({"latents_mean": [-1.66, 1.89, -1.38, 2.52]}, "latents_mean"),
        ({"latents_std": [8.49, 5.9, 6.55, 5.23]}, "latents_std"),
        ({"latents_std": "wide"}, "latents_std wide"),
        ({"scaling_factor": 10**400}, "scaling_factor 1000"),
        (["a"], "not a JSON object"),
    ],
)
def test_latents_of_another_scale_are_refused_whatever_the_prediction(tmp_path, config, reason):
    path = hollow_folder(tmp_path / "a", vae=config)
    for prediction in (None, "eps"):
        with pytest.raises(WeightsError, match=reason):
            detect(path, prediction)


def test_a_vae_of_another_scale_cannot_replace_a_models(tmp_path):
    model = hollow_folder(tmp_path / "a")
    vae = hollow_folder(tmp_path / "b", vae={"scaling_factor": 0.18215}) / "vae"
    with pytest.raises(WeightsError, match=r"vae/config\.json has scaling_factor 0\.18215"):
        plan_model(model, vae=vae)


def test_the_folder_of_a_vae_alone_is_checked_by_its_own_config(tmp_path):
    path = hollow_folder(tmp_path / "a", vae={"scaling_factor": 0.5})
    with pytest.raises(WeightsError, match=r"scaling_factor 0\.5"):
        check_latents(path / "vae", 0.13025)
    check_latents(path / "vae" / "diffusion_pytorch_model.safetensors", 0.13025)
