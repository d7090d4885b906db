"""The tables of docs/clients.md say what the suite has recorded, of the versions that .ci/run installs."""

import re

import pytest
from client_table import PAGE, build_page, find_differences, merge_results, read_results
from paths import ROOT
from register import OPERATIONS, read_clients

CLIENTS = read_clients()
TESTED = [client for client in CLIENTS if client.script]


def test_the_page_shows_the_recorded_outcomes():
    page = PAGE.read_text("utf-8")
    assert page == build_page(page, CLIENTS, read_results())


def test_every_offered_operation_has_passed():
    offered = {
        client.label: {name: "passed" for name in OPERATIONS if client.has_operation(name)}
        for client in TESTED
    }
    assert read_results() == offered


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


def test_only_what_ran_is_compared():
    results = {"a 1": {"generate": "passed", "tags": "passed"}, "b 1": {"generate": "passed"}}
    assert find_differences(results, {"a 1": {"generate": "passed"}}) == []
    assert find_differences(results, {"b 1": {"generate": "failed"}}) == [
        "b 1: text to image has failed, results.json says passed"
    ]


def test_a_partial_run_keeps_the_other_outcomes():
    results, client = read_results(), TESTED[0].label
    merged = merge_results(results, {client: {"generate": "failed"}})
    assert merged == results | {client: results[client] | {"generate": "failed"}}
