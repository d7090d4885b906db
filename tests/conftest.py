"""What many tests share: the folder of goldens and the folder of facts beside the checkout, when there is one."""

import json
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # tests/analytic.py and its like are plain modules


@pytest.fixture(scope="session")
def golden():
    """Read a golden by name."""
    return lambda name: json.loads((HERE / "golden" / f"{name}.json").read_text())
