"""Tests depend on no time that something takes and on no boundaries of what a connection delivers."""

import re

import pytest
from paths import ROOT

WAITING = {
    "tests/waiting.py",
    "tests/live_server.py",
    "tests/clients/test_tls.py",
    "tests/gates/test_chance.py",
}
"""The modules that wait and read for all tests, one that is run as a program too, and this one."""
FILES = [
    path
    for path in sorted((ROOT / "tests").rglob("*.py"))
    if path.relative_to(ROOT).as_posix() not in WAITING
]
CHANCE = re.compile(r"(?<!asyncio\.)\b(?:sleep|monotonic|perf_counter|recv)\(")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_wait_for_conditions_and_read_until_something(path):
    assert CHANCE.findall(path.read_text("utf-8")) == []


@pytest.mark.parametrize("line", ["time.sleep(0.1)", "sleep(LIMIT)", "connection.recv(100)"])
def test_the_gate_finds_what_depends_on_chance(line):
    assert CHANCE.search(line)
