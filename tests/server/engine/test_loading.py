from dataclasses import replace
from typing import Any

import pytest
import torch
from compilers import Backend
from drive import run_job
from jobs import make_job

from pipelines.compiled import CompiledShapes
from server.config.settings import Settings
from server.config.toml import ConfigError
from server.engine import loading
from server.engine.loading import (
    check_device,
    has_own_memory,
    load_models,
    read_memory,
    resolve_device,
)


@pytest.mark.parametrize(
    ("cuda", "mps", "device"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_is_a_gpu_if_there_is_one(monkeypatch, cuda, mps, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resolve_device("auto") == device


def test_a_named_device_must_be_available():
    assert resolve_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="device = 'nonsense' is not available"):
        resolve_device("nonsense")


def test_the_memory_of_a_gpu_is_read_and_that_of_a_cpu_is_not(monkeypatch):
    stats = {"allocated_bytes.all.current": 3, "reserved_bytes.all.current": 5, "num_ooms": 0}
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: stats if device == "cuda:1" else {})
    assert read_memory("cuda:1") == {"used": 3, "reserved": 5}
    assert read_memory("cuda") == {"used": 0, "reserved": 0}  # nothing has been allocated
    assert read_memory("cpu") == {}


@pytest.mark.parametrize(("kind", "expected"), [("cuda:1", True), ("mps", False), ("cpu", False)])
def test_only_cuda_has_memory_of_its_own(kind, expected):
    assert has_own_memory(torch.device(kind)) is expected


def test_kernels_are_needed_for_a_gpu_alone(monkeypatch):
    monkeypatch.setattr("server.engine.loading.explain_missing_kernels", lambda: "no kernels for sm_120")
    assert check_device("cpu", make_settings()) is None
    with pytest.raises(ConfigError, match="no kernels for sm_120"):
        check_device("cuda", make_settings())
    monkeypatch.setattr("server.engine.loading.explain_missing_kernels", lambda: None)
    check_device("cuda", make_settings(kernels="off"))


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


def test_kernels_that_are_not_used_are_logged_once_with_the_reason(model, monkeypatch, caplog):
    monkeypatch.setattr(loading, "explain_unused_kernels", lambda *_: "Triton is not installed")
    load_models([model], make_settings())
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.message.startswith('speed.kernels = "auto"')
    assert record.message.endswith("because Triton is not installed")


def test_nothing_is_said_where_kernels_run_or_are_not_chosen():
    assert check_device("cpu", make_settings()) is None


@pytest.mark.parametrize("weights", ["int8", "float8"])
def test_the_formats_run_on_a_cpu(weights):
    assert check_device("cpu", make_settings(weights=weights)) is None


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
        job: Any = replace(make_job(width=size, height=size, steps=2), model=small.model)
        run_job(residents, job)
        assert backend.counts == (3, runs + passes)
        runs = backend.runs
