"""`naiad check` on the accounts file, on the device and on what networks predict."""

import os
import re
import sys
from contextlib import nullcontext

import pytest

from pipelines.weights import placement
from server.api.credentials import generate_token, hash_token
from server.cli.check import check_setup
from server.config.catalog import single_model_catalog
from server.config.settings import Settings
from server.config.toml import ConfigError
from server.engine import device

HASHED = f'[[account]]\nname = "a"\ntoken_hash = "{hash_token(generate_token())}"\n'
CLEAR = '[[account]]\nname = "b"\ntoken = "token-in-clear"\n'


@pytest.fixture
def check(demo_file, tmp_path):
    """Check a setup with an accounts file; return the line about it."""

    def check(text, mode=0o600):
        file = tmp_path / "tokens.toml"
        file.write_text(text)
        file.chmod(mode)
        lines = check_setup(single_model_catalog(demo_file), Settings(tokens=file))
        return next(line for line in lines if line.startswith("accounts: "))

    return check


def test_accounts_are_counted(check):
    assert check("") == "accounts: 0"
    assert check(HASHED, 0o644) == "accounts: 1"


def test_a_token_in_clear_is_mentioned(check):
    line = "accounts: 2, 1 with a token in clear (`naiad token add` keeps only a hash)"
    assert check(HASHED + CLEAR) == line


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_others_may_not_read_a_token_in_clear(check, mode):
    assert "; other users of this machine may read it: chmod 600 " in check(CLEAR, mode)


def test_an_error_in_the_file_is_found(check):
    with pytest.raises(ConfigError, match=r"tokens\.toml:4: .*limits"):
        check(HASHED + "limits = 3\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "cuda:63"}, "device = 'cuda:63' is not available"),
        ({"speed": {"graphs": "on"}}, 'speed.graphs = "on": graphs are for GPUs'),
        ({"speed": {"kernels": "on"}}, 'speed.kernels = "on": the kernels are for NVIDIA GPUs'),
    ],
)
def test_what_the_device_lacks_is_found(demo_file, changes, message):
    settings = Settings.model_validate({"device": "cpu"} | changes)
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        list(check_setup(single_model_catalog(demo_file), settings))


@pytest.mark.parametrize("choice", [{"weights": "int8"}, {"fused_projections": "on"}])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_what_needs_more_than_the_memory_that_is_planned_for_is_found(demo_file, monkeypatch, choice, share):
    monkeypatch.setattr(placement, "CARD_SHARE", share)
    settings = Settings.model_validate({"device": "cpu", "speed": {"memory": 1} | choice})
    expected = pytest.raises(ConfigError, match="it needs all of the UNet on the GPU")
    with nullcontext() if share else expected:
        list(check_setup(single_model_catalog(demo_file), settings))


@pytest.mark.parametrize("speed", [{"weights": "int8"}, {"fused_projections": "on", "channels_last": "on"}])
def test_what_the_device_has_is_accepted(demo_file, speed):
    settings = Settings.model_validate({"device": "cpu", "speed": speed})
    assert list(check_setup(single_model_catalog(demo_file), settings))[-1] == "OK"


def test_an_attention_backend_that_is_missing_is_found(demo_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with pytest.raises(ConfigError, match="attention is set to xformers, which is not installed"):
        list(check_setup(single_model_catalog(demo_file), Settings(device="cpu", attention="xformers")))


def test_lossy_options_and_a_plan_that_saves_nothing_are_mentioned(demo_file):
    settings = Settings.model_validate({"device": "cpu", "speed": {"step_cache": 2, "memory": 8}})
    lines = list(check_setup(single_model_catalog(demo_file), settings))
    assert "lossy options change pictures: speed.step_cache = 2" in lines
    assert (
        "speed.memory = 8: the plan saves nothing, because the device cpu has no memory of its own" in lines
    )
    assert not [line for line in check_setup(single_model_catalog(demo_file), Settings()) if "lossy" in line]


def test_kernels_that_are_not_used_are_mentioned(demo_file, monkeypatch):
    monkeypatch.setattr(device, "explain_unused_kernels", lambda *_: "Triton is not installed")
    lines = list(check_setup(single_model_catalog(demo_file), Settings(device="cpu")))
    (line,) = [line for line in lines if line.startswith("speed.kernels")]
    assert line.endswith("because Triton is not installed")


def test_a_probe_shows_that_the_network_predicts_what_was_detected(demo_file):
    lines = list(check_setup(single_model_catalog(demo_file), Settings(), probe=True))
    assert lines[-2].startswith("nai-diffusion-3: its network shows v, as detected (cosine ")


def test_a_probe_refuses_a_network_that_predicts_something_else(demo_file):
    catalog = single_model_catalog(demo_file, prediction="eps")
    with pytest.raises(ConfigError, match="the configuration sets eps, but its network shows v"):
        list(check_setup(catalog, Settings(), probe=True))
