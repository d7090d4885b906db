"""The server's log repeats no line within two seconds."""

import logging

import pytest

from server.cli import logs
from server.cli.logs import REMEMBERED, RepeatFilter, configure_logging


def record(text, *args, name="naiad"):
    return logging.LogRecord(name, logging.WARNING, "", 0, text, args, None)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(logs, "monotonic", lambda: now[0])
    return now


def test_a_line_is_repeated_every_two_seconds(clock):
    repeats = RepeatFilter()
    passed = 0
    for step in range(500):
        clock[0] = 100 + step / 100
        passed += repeats.filter(record("%d files are open", 5))
    assert passed == 3


def test_other_lines_pass(clock):
    repeats = RepeatFilter()
    assert repeats.filter(record("%s failed", "a"))
    assert repeats.filter(record("%s failed", "b"))
    assert repeats.filter(record("%s failed", "a", name="uvicorn.error"))
    assert not repeats.filter(record("a failed"))


def test_a_line_that_differs_in_its_id_alone_is_repeated(clock):
    repeats = RepeatFilter()
    records = [record("%s refused", number) for number in range(9)]
    for each in records:
        each.repeated = "refused"
    assert [repeats.filter(each) for each in records] == [True] + [False] * 8


def test_few_lines_are_remembered(clock):
    repeats = RepeatFilter()
    for number in range(3 * REMEMBERED):
        assert repeats.filter(record("%d", number))
    assert len(repeats._logged) <= REMEMBERED


def test_the_log_is_set_up_once_for_all_loggers(monkeypatch):
    options = {}
    monkeypatch.setattr(logging, "basicConfig", lambda **given: options.update(given))
    configure_logging()
    assert options["level"] == logging.INFO
    (handler,) = options["handlers"]
    assert any(isinstance(each, RepeatFilter) for each in handler.filters)
    assert logging.getLogger("uvicorn.error").getEffectiveLevel() == logging.WARNING
