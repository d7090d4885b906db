import pytest
import torch

from server.config.settings import Settings
from server.config.toml import ConfigError, DeviceUnavailable
from server.engine.device import check_device, has_own_memory, read_memory, resolve_device


def make_settings(**speed):
    return Settings.model_validate({"device": "cpu", "speed": speed})


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
    with pytest.raises(DeviceUnavailable, match="device = 'cuda:63' is not available"):
        resolve_device("cuda:63")


@pytest.mark.parametrize("name", ["nonsense", "", "cuda:", "cuda:-1"])
def test_what_is_no_name_of_a_device_stays_wrong(name):
    with pytest.raises(ConfigError, match=rf"device = '{name}' is not auto, cpu,") as caught:
        resolve_device(name)
    assert not isinstance(caught.value, DeviceUnavailable)


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
    monkeypatch.setattr("server.engine.device.explain_missing_kernels", lambda: "no kernels for sm_120")
    assert check_device("cpu", make_settings()) == ()
    with pytest.raises(ConfigError, match="no kernels for sm_120"):
        check_device("cuda", make_settings())
    monkeypatch.setattr("server.engine.device.explain_missing_kernels", lambda: None)
    check_device("cuda", make_settings(kernels="off"))


def test_nothing_is_said_where_kernels_run_or_are_not_chosen():
    assert check_device("cpu", make_settings()) == ()


@pytest.mark.parametrize("weights", ["int8", "float8"])
def test_the_formats_run_on_a_cpu(weights):
    assert check_device("cpu", make_settings(weights=weights)) == ()


def test_memory_to_plan_for_is_mentioned_where_the_device_has_none():
    (remark,) = check_device("cpu", make_settings(memory=8))
    assert (
        remark == "speed.memory = 8: the plan saves nothing, because the device cpu has no memory of its own"
    )
    assert check_device("cuda", Settings.model_validate({"speed": {"memory": 8, "kernels": "off"}})) == ()
