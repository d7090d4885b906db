"""The server's log repeats no line within two seconds, and its lines are text or JSON."""

import json
import logging
import sys
from datetime import UTC, datetime

import pytest
from structlog.contextvars import bound_contextvars

from server.cli import logs
from server.cli.logs import REMEMBERED, RepeatFilter, build_formatter, configure_logging


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


def test_a_line_is_text_or_json_as_the_setting_and_the_terminal_have_it():
    lines = {
        (log_format, is_terminal): build_formatter(log_format, is_terminal).format(record("%d jobs", 3))
        for log_format in ("console", "json", "auto")
        for is_terminal in (True, False)
    }
    is_json = {choice: line.startswith("{") for choice, line in lines.items()}
    assert [choice for choice, found in is_json.items() if found] == [
        ("json", True),
        ("json", False),
        ("auto", False),
    ]
    assert lines["console", False].endswith(" WARNING naiad: 3 jobs")


def format_json(entry):
    line = build_formatter("json", is_terminal=False).format(entry)
    assert "\n" not in line
    return json.loads(line)


def test_a_json_line_has_the_time_in_utc_the_level_the_logger_and_the_text():
    fields = format_json(record("%d jobs\nwait", 3))
    time = datetime.fromisoformat(fields.pop("time"))
    assert time.utcoffset() == datetime.now(UTC).utcoffset()
    assert fields == {"event": "3 jobs\nwait", "level": "warning", "logger": "naiad"}


def test_a_json_line_has_the_fields_of_a_request_and_no_others():
    entry = record("refused")
    entry.status, entry.seconds, entry.repeated, entry.prompt = 429, 0.25, "refused", "a secret wish"
    with bound_contextvars(request_id="0123456789abcdef"):
        fields = format_json(entry)
    assert (fields["request_id"], fields["status"], fields["seconds"]) == ("0123456789abcdef", 429, 0.25)
    assert fields.keys() == {"event", "level", "logger", "time", "request_id", "status", "seconds"}


def test_a_json_line_has_a_traceback_without_the_values_of_variables():
    prompt = "a secret " + "wish"
    try:
        raise RuntimeError(f"broken after {len(prompt)} letters")
    except RuntimeError:
        entry = logging.LogRecord("naiad", logging.ERROR, "", 0, "it failed", (), sys.exc_info())
    fields = format_json(entry)
    assert "RuntimeError: broken after 13 letters" in fields["exception"]
    assert "a secret wish" not in str(fields)
