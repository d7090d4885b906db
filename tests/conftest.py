"""What many tests share: the goldens, the demo model, a fake one, and a server process."""

import json
import os
import sys
from pathlib import Path
from threading import Semaphore

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: `make test` runs a test on each core

import pytest
from hypothesis import HealthCheck, settings

from demo.checkpoint import DEMO

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # tests/analytic.py is a plain module
# neither a busy machine nor the choice of examples lets a test fail by chance
settings.register_profile(
    "naiad", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("naiad")


@pytest.fixture(scope="session")
def golden():
    """Read a golden by name."""
    return lambda name: json.loads((HERE / "golden" / f"{name}.json").read_text())


@pytest.fixture(scope="session")
def demo_file():
    """The demo model's checkpoint."""
    return DEMO


@pytest.fixture(scope="session")
def model(demo_file):
    """The demo model as a server knows it before it is loaded."""
    from server.config.catalog import single_model_catalog
    from server.engine.model import detect_model

    return detect_model(single_model_catalog(demo_file))


@pytest.fixture
def fake_model():
    """A model without networks."""
    from fake_model import FakeModel

    return FakeModel()


@pytest.fixture
def gate():
    """A semaphore for a fake model to acquire in each evaluation."""
    gate = Semaphore(0)
    yield gate
    gate.release(10_000)


@pytest.fixture(scope="session")
def demo(demo_file):
    """The demo model, loaded."""
    from pipelines.pipeline import Pipeline
    from pipelines.weights.load import load_weights

    return Pipeline(load_weights(demo_file))


@pytest.fixture(scope="session")
def signing_key(tmp_path_factory):
    """An operator's key."""
    from server.picture.signature import open_key

    return open_key(tmp_path_factory.mktemp("key") / "signing.pem")


@pytest.fixture(scope="session")
def server(demo_file, tmp_path_factory):
    """The address of a server process that has the demo model loaded."""
    from server_process import run_server

    with run_server(demo_file, tmp_path_factory.mktemp("server")) as address:
        yield address
