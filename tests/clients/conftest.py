"""Fixtures: server processes for third-party clients and readers. Hooks: a record of what worked with each client."""

import json
import os
import sys
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests/clients/register.py is a plain module

from register import OPERATIONS
from server_process import run_server

OUTCOMES: dict[str, dict[str, str]] = {}
"""The outcome of the tests of each operation by client; one failure counts for all."""


def pytest_configure(config):
    config.addinivalue_line("markers", "operation(name): the operation of a client that a test tries")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    operation = item.get_closest_marker("operation")
    if operation is not None and not report.skipped and (call.when == "call" or report.failed):
        outcomes = OUTCOMES.setdefault(item.callspec.params["client"].label, {})
        if outcomes.get(operation.args[0]) != "failed":
            outcomes[operation.args[0]] = report.outcome
    return report


def pytest_sessionfinish():
    """Write the outcomes to the file that NAIAD_CLIENT_RECORD names."""
    if file := os.environ.get("NAIAD_CLIENT_RECORD"):
        ordered = {
            client: {operation: outcomes[operation] for operation in OPERATIONS if operation in outcomes}
            for client, outcomes in OUTCOMES.items()
        }
        Path(file).write_text(json.dumps(ordered, indent=2) + "\n")


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
    return httpx.get(f"{open_address}/key", timeout=60).json()["key"]


LONG = {"width": 512, "height": 704, "steps": 50, "n_samples": 8}


@pytest.fixture(scope="session")
def busy_address(demo_file, tmp_path_factory):
    """The address of a server that generates one long request and has no room for another."""
    with run_server(demo_file, tmp_path_factory.mktemp("busy"), engine_queue_limit=1) as address:
        connections = []
        while not is_busy(address):
            assert len(connections) < 5, "the queue of one request is not full"
            connections.append(HTTPConnection(address.removeprefix("http://")))
            connections[-1].request(
                "POST",
                "/ai/generate-image",
                json.dumps({"input": "1girl", "parameters": LONG}),
                {"Content-Type": "application/json"},
            )
        yield address
        for connection in connections:
            connection.close()


def is_busy(address):
    """Return whether the server answers a request with status 429 at once."""
    body = {"input": "1girl", "parameters": {"width": 64, "height": 64, "steps": 1}}
    try:
        return httpx.post(f"{address}/ai/generate-image", json=body, timeout=2).status_code == 429
    except httpx.TimeoutException:
        return False
