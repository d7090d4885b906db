"""The command line and the application, both in this process and with a model without networks."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_model import BASE_URL, FakeModel, build_state
from fastapi.testclient import TestClient

from server.app import create_app
from server.cli.main import main
from server.config.catalog import single_model_catalog
from server.engine.model import detect_model

FILES = Path(__file__).parent / "files"


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    status: int
    output: str
    error: str


@pytest.fixture
def file():
    """Path of an input by name."""
    return lambda name: FILES / name


@pytest.fixture
def fake_model():
    return FakeModel()


@pytest.fixture
def naiad(fake_model, monkeypatch, capsys, tmp_path):
    """Run the `naiad` command in an empty folder."""
    for name in [name for name in os.environ if name.startswith("NAIAD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NAIAD_SIGNING_KEY", str(tmp_path / "signing.pem"))
    monkeypatch.setattr("server.engine.loading.load_models", lambda *_, **__: fake_model)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["naiad", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        streams = capsys.readouterr()
        return Done(int(ended.value.code or 0), streams.out, streams.err)

    return run


@pytest.fixture(scope="module")
def demo_model(demo_file):
    return detect_model(single_model_catalog(demo_file))


@pytest.fixture
def client(demo_model, fake_model, signing_key):
    state = build_state(demo_model, fake_model, signing_key)
    with TestClient(create_app(state), base_url=BASE_URL) as client:
        state.engine.wait_ready()
        yield client
