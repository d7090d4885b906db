"""This process's memory: giving freed memory back to the system, which glibc does not do by itself for most of it, and
measuring how much is used at most.
"""

import ctypes
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import cast

M_ARENA_MAX = -8
"""glibc's number of the option, in malloc.h."""
PROCESS = Path("/proc/self")


def share_heap() -> None:
    """Let threads that begin later use the main thread's heap, where the C library is glibc.

    `malloc_trim` leaves part of what is free in the heaps of other threads: under a mixed load it was 5 MB more each
    minute, while as much as before was in use (mallopt(3), M_ARENA_MAX).
    """
    mallopt = _find_function("mallopt")
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)


def trim_heap() -> None:
    """Give the memory of decoded images back to the system, where the C library can.

    Two images of 5792 x 5792 at a time would leave 0.6 GB behind.
    """
    malloc_trim = _find_function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


@cache
def _find_function(name: str) -> Callable[..., object] | None:
    """Return a function of the C library; None if it has none of this name."""
    try:
        return cast("Callable[..., object]", getattr(ctypes.CDLL(None), name))
    except (OSError, AttributeError, TypeError):
        return None


def reset_peak_memory(process: Path = PROCESS) -> None:
    """Begin to measure how much memory this process has at most, where Linux allows it (proc(5), clear_refs)."""
    trim_heap()
    with suppress(OSError):
        (process / "clear_refs").write_text("5")


def read_peak_memory(process: Path = PROCESS) -> dict[str, int]:
    """Return the most resident memory since `reset_peak_memory` in bytes; empty where the system does not say."""
    with suppress(OSError):
        for line in (process / "status").read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):
                return {"resident": 1024 * int(line.split()[1])}
    return {}
