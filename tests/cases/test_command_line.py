"""Environments and habits in which users run the command."""

import subprocess
import sys

import pytest
from server_process import build_environment

from server.config.settings import load_settings
from server.config.toml import ConfigError

GENERATE = ("generate", "cat", "--demo", "--size", "64x64", "--steps", 1)


def test_the_variables_of_a_kubernetes_service_are_no_settings(file):
    variables = dict(line.split("=", 1) for line in file("kubernetes.env").read_text().split())
    assert load_settings(None, variables, {}).port == 4242
    with pytest.raises(ConfigError, match="NAIAD_PORT"):
        load_settings(None, {"NAIAD_PROT": "1"}, {})


def test_a_report_is_printed_whole_under_a_code_page(file, tmp_path):
    environment = build_environment(signing_key=tmp_path / "signing.pem") | {"PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, "-P", "-m", "server", "inspect", str(file("japanese.png"))]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    report = done.stdout.decode("cp1252")
    assert "128 x 128" in report
    assert "seed: 7" in report
    assert "not signed" in report


def test_a_missing_folder_is_made_or_refused_before_drawing(naiad, fake_model, tmp_path):
    done = naiad(*GENERATE, "-o", "missing/x.png")
    if done.status == 0:
        assert (tmp_path / "missing" / "x.png").exists()
    else:
        assert fake_model.jobs == []
        assert "missing" in done.error.splitlines()[-1]


def test_a_second_run_keeps_the_first_image(naiad, tmp_path):
    assert naiad(*GENERATE, "--seed", 1).status == 0
    first = (tmp_path / "out.png").read_bytes()
    naiad(*GENERATE, "--seed", 2)
    assert (tmp_path / "out.png").read_bytes() == first
