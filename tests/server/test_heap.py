"""Measuring this process's memory; giving it back is tested where it is freed."""

import platform
import subprocess
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


HEAPS = """
import ctypes, threading
from server.heap import share_heap
if {shared}:
    share_heap()
libc, text, size = ctypes.CDLL(None), ctypes.c_char_p(), ctypes.c_size_t()
libc.open_memstream.restype = ctypes.c_void_p
libc.malloc_info.argtypes, libc.fclose.argtypes = (ctypes.c_int, ctypes.c_void_p), (ctypes.c_void_p,)
together = threading.Barrier(4)
def use():
    held = bytearray(100_000)
    together.wait()
threads = [threading.Thread(target=use) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
stream = libc.open_memstream(ctypes.byref(text), ctypes.byref(size))
libc.malloc_info(0, stream)
libc.fclose(stream)
print(text.value.count(b"<heap nr="))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has several heaps")
def test_threads_share_one_heap():
    counts = [
        int(subprocess.check_output([sys.executable, "-P", "-c", HEAPS.format(shared=shared)], text=True))
        for shared in (True, False)
    ]
    assert counts[0] == 1
    assert counts[1] > 1
