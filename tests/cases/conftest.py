"""The command line and the application, both in this process and with a model without networks."""

from pathlib import Path

import pytest
from command import build_command
from fake_model import BASE_URL, FakeModel, build_state
from fastapi.testclient import TestClient

from server.app import create_app
from server.config.catalog import single_model_catalog
from server.engine.model import detect_model

FILES = Path(__file__).parent / "files"


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
    monkeypatch.setattr("server.engine.loading.load_models", lambda *_, **__: fake_model)
    return build_command(monkeypatch, capsys, tmp_path)


@pytest.fixture(scope="module")
def demo_model(demo_file):
    return detect_model(single_model_catalog(demo_file))


@pytest.fixture
def client(demo_model, fake_model, signing_key):
    state = build_state(demo_model, fake_model, signing_key)
    with TestClient(create_app(state), base_url=BASE_URL) as client:
        state.engine.wait_ready()
        yield client
