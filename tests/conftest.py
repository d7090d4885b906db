"""What many tests share: the goldens, the demo model, and a server process."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: `make test` runs a test on each core

import httpx
import pytest
from hypothesis import settings

from demo.checkpoint import DEMO

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # tests/analytic.py is a plain module
settings.register_profile("naiad", deadline=None)  # a busy machine is no failure
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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    folder = tmp_path_factory.mktemp("server")
    log = folder / "log"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NAIAD_")}
    environment["NAIAD_SIGNING_KEY"] = str(folder / "signing.pem")
    environment["OMP_NUM_THREADS"] = "1"  # small pictures beside busy neighbours: threads wait for each other
    command = [sys.executable, "-P", "-m", "server", "serve", str(demo_file), "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            _until_ready(address, process, log)
            yield address
        finally:
            process.terminate()
            process.wait(60)


def _until_ready(address, process, log):
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{address}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(log.read_text())
