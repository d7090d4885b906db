"""Which ControlNets stay loaded, and the errors that leave a model as it was."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from control_files import ARCHITECTURES, build_control, draw_map, name_control, save_control
from jobs import make_job
from safetensors.torch import load_file, save_file

from pipelines.adapters.control_residency import ControlResidency
from pipelines.adapters.controlnet import ControlPlan
from pipelines.errors import OutOfMemory, UnusableFile
from pipelines.pipeline import Pipeline

MAP = draw_map(64, 64)


@pytest.fixture(scope="module")
def controls(tmp_path_factory):
    """Three ControlNets for the demo model, by name."""
    folder, architecture = tmp_path_factory.mktemp("controls"), ARCHITECTURES["sdxl"]
    paths = {
        name: save_control(
            folder / f"{name}.safetensors", build_control(architecture, seed=seed), architecture
        )
        for seed, name in enumerate("abc")
    }
    return {name: name_control(path, MAP) for name, path in paths.items()}


def list_names(residency):
    return "".join(path.stem for path, _ in residency._plans)


def measure(demo, control):
    residency = ControlResidency(demo.weights, 0)
    residency.activate([control])
    return residency.size


def test_the_networks_that_were_used_last_stay_within_the_budget(demo, controls):
    size = measure(demo, controls["a"])
    assert size == sum(tensor.nbytes for tensor in load_file(controls["a"].path).values())
    residency = ControlResidency(demo.weights, 2 * size)
    first = residency.activate([controls["a"]])
    residency.activate([controls["b"]])
    assert residency.activate([controls["a"]]) == first  # the same object, not loaded again
    assert list_names(residency) == "ba"
    residency.activate([controls["c"]])
    assert list_names(residency) == "ac"
    assert residency.size == 2 * size


def test_without_a_budget_only_the_current_jobs_networks_stay(demo, controls):
    residency = ControlResidency(demo.weights, 0)
    networks = residency.activate([controls["a"], controls["b"], replace(controls["a"], strength=0.5)])
    assert list_names(residency) == "ba"
    assert networks[0] is networks[2]
    residency.activate([controls["c"]])
    assert list_names(residency) == "c"
    residency.activate([])
    assert residency.size == 0


def test_moving_the_model_frees_its_networks(demo_file, controls):
    from pipelines.weights.load import load_weights

    pipeline = Pipeline(load_weights(demo_file))
    own, job = pipeline.size, make_job(64, 64, steps=1, controls=(controls["a"],))
    first = pipeline.generate_latents(job)[0]
    assert pipeline.size == own + pipeline._controls.size > own
    pipeline.move(torch.device("cpu"))
    assert pipeline.size == own
    assert torch.equal(pipeline.generate_latents(job)[0], first)


def change(path, tensors):
    stored = load_file(path) | tensors
    save_file(stored, path, {"naiad.architecture": ARCHITECTURES["sdxl"].to_json()})
    return name_control(path, MAP)


def test_unusable_files_are_errors_that_leave_the_model_as_it_was(demo, tmp_path):
    plain = make_job(64, 64, steps=1)
    before = demo.run(plain).images[0]
    path, architecture = tmp_path / "mine.safetensors", ARCHITECTURES["sdxl"]
    save_control(path, build_control(architecture), architecture)
    old = name_control(path, MAP)
    damaged = change(path, {"controlnet_mid_block.bias": torch.full((128,), torch.nan)})
    other = ARCHITECTURES["sd15"]
    foreign = name_control(save_control(tmp_path / "sd15.safetensors", build_control(other), other), MAP)
    for control, said in (
        (old, "'mine': it has changed since the server was started; restart it"),
        (damaged, "'mine': controlnet_mid_block.bias contains NaN or infinity"),
        (foreign, "'sd15': is a ControlNet for Stable Diffusion 1, the model is SDXL; choose one for SDXL"),
    ):
        with pytest.raises(UnusableFile, match=re.escape(f"ControlNet {said}")):
            demo.run(replace(plain, controls=(control,)))
        assert np.array_equal(demo.run(plain).images[0], before)
        assert demo._controls.size == 0


def test_networks_that_the_last_job_does_not_use_can_be_freed(demo, controls):
    residency = ControlResidency(demo.weights, 1 << 30)
    residency.activate([controls["a"]])
    one = residency.size
    (network,) = residency.activate([controls["b"]])
    assert residency.size == 2 * one
    residency.free_unused()
    assert residency.size == one
    assert residency.activate([controls["b"]]) == (network,)


def test_running_out_of_memory_frees_all_networks_and_is_told(demo, controls, monkeypatch):
    residency = ControlResidency(demo.weights, 1 << 30)
    residency.activate([controls["a"]])

    def fail(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ControlPlan, "fill", fail)
    with pytest.raises(OutOfMemory, match="ControlNet 'b': not enough memory"):
        residency.activate([controls["b"]])
    assert residency.size == 0
