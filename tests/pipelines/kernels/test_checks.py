"""Runs the checks of Triton's kernels: in its interpreter on the CPU, and on a GPU where there is one.

Triton decides when it is imported whether it interprets, so the checks run in processes of their own.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from paths import ROOT

QUICK = ("check_geglu.py", "check_group_norm.py")
CHECKS = (*QUICK, "check_pictures.py")

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def run_checks(name, marks, interpret):
    variables = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "TRITON_"))
    }
    if interpret:
        variables["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", marks]
    # SiLU of what lies outside a tile, which is computed and not stored; the interpreter's NumPy warns
    command += [
        "-W",
        "ignore:overflow encountered in exp:RuntimeWarning",
        str(Path(__file__).with_name(name)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=variables)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", QUICK)
def test_kernels_in_the_interpreter(name):
    run_checks(name, "not slow", interpret=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_more_kernels_in_the_interpreter(name):
    run_checks(name, "slow", interpret=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", CHECKS)
def test_kernels_on_the_gpu(name):
    run_checks(name, "slow or not slow", interpret=False)
