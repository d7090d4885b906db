"""Calls in threads: every error arrives."""

import asyncio

import pytest
from paths import ROOT

from server.api.threads import call_in_thread


def test_results_and_errors_arrive():
    assert asyncio.run(call_in_thread(divmod, 7, 2)) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(call_in_thread(divmod, 7, 0))


def test_a_stop_iteration_arrives_as_another_error():
    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(asyncio.wait_for(call_in_thread(next, iter(())), 20))


def test_no_other_module_calls_threads_itself():
    files = (ROOT / "server/api").rglob("*.py")
    assert [file.name for file in files if "to_thread(" in file.read_text()] == ["threads.py"]
