import pytest
import torch

from server.config.toml import ConfigError
from server.engine.loading import resolve_device


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
