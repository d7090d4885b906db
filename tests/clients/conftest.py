"""Fixtures: server processes for third-party clients and readers."""

import sys
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests/clients/programs.py is a plain module

from programs import run_server

TOKENS = """
[[account]]
name = "a@b.c"
key = "dH77hGoqJBPjdNLL6X2IoEefDz7fMhkVSfNhOR2RQcCwOewFMfghP6ugV9B5fOs4"  # of the password "password"
token = "pst-an-account-of-its-own"
"""


@pytest.fixture(scope="session")
def open_address(demo_file, tmp_path_factory):
    """The address of a server without a token, the default on loopback."""
    with run_server(demo_file, tmp_path_factory.mktemp("open")) as address:
        yield address


@pytest.fixture(scope="session")
def closed_address(demo_file, tmp_path_factory):
    """The address of a server with a token and with an account that has another token."""
    folder = tmp_path_factory.mktemp("closed")
    tokens = folder / "tokens.toml"
    tokens.write_text(TOKENS)
    with run_server(demo_file, folder, token="pst-the-server-s-own", tokens=tokens) as address:
        yield address


@pytest.fixture(scope="session")
def server_key(open_address):
    """The public key of the server without a token."""
    return httpx.get(f"{open_address}/key").json()["key"]
