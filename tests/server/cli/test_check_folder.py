"""`naiad check FOLDER` on forty files as users have them."""

import pytest
from assorted_files import VERDICTS, write_files
from checkpoint_files import hollow_folder
from typer.testing import CliRunner

from server.cli.check_folder import check_folder, is_collection
from server.cli.main import app
from server.config.toml import ConfigError


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_files(folder)
    return list(check_folder(folder))


@pytest.mark.parametrize("name", VERDICTS)
def test_each_file_has_its_verdict_and_the_reason(lines, name):
    (line,) = [line for line in lines if line.startswith(f"{name}: ")]
    assert VERDICTS[name] in line


def test_every_file_has_a_line_and_the_last_line_counts_them(lines):
    assert len(VERDICTS) >= 40
    assert len(lines) == len(VERDICTS) + 1
    assert lines[-1] == f"2 of {len(VERDICTS)} can be served"


def test_a_diffusers_folder_is_one_model(tmp_path):
    hollow_folder(tmp_path / "model")
    assert not is_collection(tmp_path / "model")
    assert [line.split(":")[0] for line in check_folder(tmp_path)][:-1] == ["model"]


def test_a_folder_without_models_is_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match="no safetensors file and no diffusers folder"):
        list(check_folder(tmp_path))


def test_the_command_looks_into_a_folder(demo_file, tmp_path):
    (tmp_path / "truncated.safetensors").write_bytes(demo_file.read_bytes()[:-1000])
    done = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert done.exit_code == 0
    assert "truncated.safetensors: truncated: " in done.stdout
