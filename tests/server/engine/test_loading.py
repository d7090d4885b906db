from dataclasses import replace
from typing import Any

import pytest
from compilers import Backend
from drive import run_job
from jobs import make_job

from pipelines.compiled import CompiledShapes
from server.config.settings import Settings
from server.config.toml import ConfigError
from server.engine import device
from server.engine.loading import load_models


def make_settings(**speed):
    return Settings.model_validate({"device": "cpu", "speed": speed})


def test_kernels_that_cannot_run_are_an_error_before_a_model_is_loaded(model):
    with pytest.raises(ConfigError, match=r'speed\.kernels = "on": the kernels are for NVIDIA GPUs, .* cpu'):
        load_models([model], make_settings(kernels="on"))


def test_graphs_that_cannot_run_are_an_error_before_a_model_is_loaded(model):
    with pytest.raises(ConfigError, match=r'speed\.graphs = "on": graphs are for GPUs .* device is cpu'):
        load_models([model], make_settings(graphs="on"))


def test_a_format_that_the_device_lacks_is_an_error_before_a_model_is_loaded(model, monkeypatch):
    monkeypatch.setattr("pipelines.speed.explain_missing_format", lambda *_: "it needs another GPU")
    with pytest.raises(ConfigError, match=r'speed\.weights = "float8": it needs another GPU; set it to'):
        load_models([model], make_settings(weights="float8"))


@pytest.mark.parametrize(
    ("speed", "lines"),
    [
        ({}, []),
        (
            {"step_cache": 3, "weights": "int8"},
            ['lossy options change pictures: speed.weights = "int8", speed.step_cache = 3'],
        ),
    ],
)
def test_lossy_options_are_logged_in_one_line(speed, lines, model, caplog):
    caplog.set_level("INFO", "naiad")
    load_models([model], make_settings(**speed), warms_up=False)
    assert [record.message for record in caplog.records if "lossy" in record.message] == lines


def test_kernels_that_are_not_used_are_logged_once_with_the_reason(model, monkeypatch, caplog):
    monkeypatch.setattr(device, "explain_unused_kernels", lambda *_: "Triton is not installed")
    load_models([model], make_settings())
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.message.startswith('speed.kernels = "auto"')
    assert record.message.endswith("because Triton is not installed")


def test_the_unet_is_compiled_before_the_first_request_and_not_for_it(model, monkeypatch):
    backend = Backend()
    monkeypatch.setattr(
        "pipelines.weights.networks.CompiledShapes", lambda name: CompiledShapes(name, backend)
    )
    profile = model.profile
    defaults = profile.defaults.model_copy(update={"width": 64, "height": 64})
    small = replace(model, profile=profile.model_copy(update={"defaults": defaults}))
    residents = load_models([small], make_settings(compile_unet="on"))
    assert backend.compilations == 3  # of one, two and three chunks of text
    runs = backend.runs
    for size, passes in ((64, 2), (128, 0)):
        job: Any = replace(make_job(width=size, height=size, steps=2), model=small.id)
        run_job(residents, job)
        assert backend.counts == (3, runs + passes)
        runs = backend.runs
