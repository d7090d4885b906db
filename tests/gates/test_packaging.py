"""The imported packages, the content of a wheel, and the version."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

from paths import ROOT

import pipelines
import server

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_both_packages_come_from_this_checkout():
    for package in (server, pipelines):
        assert Path(str(package.__file__)).resolve().is_relative_to(ROOT)


def test_a_wheel_contains_the_two_packages_the_configs_and_the_demo(tmp_path):
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(ROOT),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    packed = {name for name in names if not name.startswith(f"naiad-{PROJECT['version']}.dist-info/")}
    sources = {
        str(path.relative_to(ROOT).as_posix())
        for folder in ("server", "pipelines")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    data = {
        f"server/{folder.name}/{path.relative_to(folder).as_posix()}"
        for folder in (ROOT / "configs", ROOT / "demo" / "weights")
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert packed == sources | data
    assert {name.rpartition("/")[2] for name in names - packed} >= {"LICENSE", "NOTICE"}


def test_the_version_is_the_newest_in_the_changelog():
    newest = re.search(r"^## \[?(\d[^\s\]]*)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == PROJECT["version"] == version("naiad")


def test_tests_are_not_a_package():
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_constraints_are_exact_and_do_not_include_torchvision():
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    names = [pin.partition("==")[0].lower() for pin in pins]
    assert len(set(names)) == len(names)
    assert "torch" in names
    assert "torchvision" not in names


def test_the_project_cannot_be_uploaded():
    assert "Private :: Do Not Upload" in PROJECT["classifiers"]
