"""Measuring this process's memory; giving it back is tested where it is freed."""

import sys

import pytest

from server.heap import read_peak_memory, reset_peak_memory


def test_the_most_memory_is_read_where_the_system_says_it(tmp_path):
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t    2048 kB\nVmRSS:\t 1024 kB\n")
    assert read_peak_memory(tmp_path) == {"resident": 2048 * 1024}
    reset_peak_memory(tmp_path)
    assert (tmp_path / "clear_refs").read_text() == "5"
    (tmp_path / "status").write_text("Name:\tpython\n")
    assert read_peak_memory(tmp_path) == {}
    reset_peak_memory(tmp_path / "missing")
    assert read_peak_memory(tmp_path / "missing") == {}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says it")
def test_memory_that_was_freed_counts_until_the_next_reset():
    large = bytearray(256 << 20)
    size = len(large)
    before = read_peak_memory()["resident"]
    assert before >= size
    del large
    assert read_peak_memory()["resident"] > before - size // 2
    reset_peak_memory()
    after = read_peak_memory()["resident"]
    assert after < before - size // 2
