"""The command line and the application, both in this process and with a model without networks."""

from pathlib import Path

import pytest
from command import build_command
from fake_model import build_state, start_client

FILES = Path(__file__).parent / "files"


@pytest.fixture
def file():
    """Path of an input by name."""
    return lambda name: FILES / name


@pytest.fixture
def naiad(fake_model, monkeypatch, capsys, tmp_path):
    """Run the `naiad` command in an empty folder."""
    monkeypatch.setattr("server.engine.loading.load_models", lambda *_, **__: fake_model)
    return build_command(monkeypatch, capsys, tmp_path)


@pytest.fixture
def client(model, fake_model, signing_key):
    state = build_state(model, fake_model, signing_key)
    with start_client(state) as client:
        yield client
