"""Server processes that other people's programs are pointed at."""

import sys
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests/clients/programs.py is a plain module

from programs import serving

TOKENS = """
[[account]]
name = "a@b.c"
key = "dH77hGoqJBPjdNLL6X2IoEefDz7fMhkVSfNhOR2RQcCwOewFMfghP6ugV9B5fOs4"  # of the password "password"
token = "pst-an-account-of-its-own"
"""


@pytest.fixture(scope="session")
def open_address(demo_file, tmp_path_factory):
    """A server that asks for no token, as on loopback by default."""
    with serving(demo_file, tmp_path_factory.mktemp("open")) as address:
        yield address


@pytest.fixture(scope="session")
def closed_address(demo_file, tmp_path_factory):
    """A server with a token, and with an account whose token is let in as well."""
    folder = tmp_path_factory.mktemp("closed")
    tokens = folder / "tokens.toml"
    tokens.write_text(TOKENS)
    with serving(demo_file, folder, token="pst-the-server-s-own", tokens=tokens) as address:
        yield address


@pytest.fixture(scope="session")
def own_key(open_address):
    """The public key that the open server signs with."""
    return httpx.get(f"{open_address}/key").json()["key"]
