"""The tables of docs/clients.md say what the suite has recorded, of the versions that .ci/run installs."""

import re

import pytest
from client_table import PAGE, build_page, find_differences, read_results
from paths import ROOT
from register import OPERATIONS, read_clients

CLIENTS = read_clients()
TESTED = [client for client in CLIENTS if client.script]


def test_the_page_shows_the_recorded_outcomes():
    page = PAGE.read_text("utf-8")
    assert page == build_page(page, CLIENTS, read_results())


def test_every_offered_operation_was_recorded():
    offered = {client.label: {name for name in OPERATIONS if client.has_operation(name)} for client in TESTED}
    assert {label: set(outcomes) for label, outcomes in read_results().items()} == offered


@pytest.mark.parametrize(
    "client", [client for client in CLIENTS if client.variable], ids=lambda client: client.label
)
def test_the_version_is_the_one_that_is_installed(client):
    commands = (ROOT / ".ci" / "run").read_text("utf-8")
    separator = "@" if client.language == "Node" else "=="
    assert re.search(
        rf"\b{client.variable}\b.* {client.name}{separator}{client.version}$", commands, re.MULTILINE
    )


def test_a_client_without_a_script_says_how_it_was_tried():
    for client in CLIENTS:
        assert client.script or (client.known and (client.works or client.fails)), client.label


def test_only_clients_that_ran_are_compared():
    results = {"a 1": {"generate": "passed"}, "b 1": {"generate": "passed"}}
    assert find_differences(results, {"a 1": {"generate": "passed"}}) == []
    assert len(find_differences(results, {"b 1": {"generate": "failed"}})) == 1
