"""Read files into the system's cache in a thread, while the program imports and plans what it needs to use them.

Needs no torch, whose import takes as long as reading some gigabytes.
"""

import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from threading import Event, Thread

from pipelines.errors import WeightsError
from pipelines.weights.checkpoint import checkpoint_files, open_checkpoint

BLOCK = 1 << 24
MEMORY_SHARE = 2
"""Half of the available memory is filled at most. What is read first is dropped first where memory is short, and
would have to be read again."""
MEMORY = Path("/proc/meminfo")


@contextmanager
def prefetch(checkpoints: Iterable[Path]) -> Generator[None]:
    """Read the files of checkpoints into the system's cache, one after another, until the block is left.

    Errors are ignored: whoever needs the files meets them again.
    """
    stop = Event()
    thread = Thread(target=_read_files, args=(tuple(checkpoints), stop), daemon=True, name="prefetch")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _read_files(checkpoints: Iterable[Path], stop: Event) -> None:
    available = read_available_memory()
    rest = None if available is None else available // MEMORY_SHARE
    try:
        for file in (file for path in checkpoints for file in checkpoint_files(open_checkpoint(path))):
            for count in _read_blocks(file):
                rest = None if rest is None else rest - count
                if stop.is_set() or (rest is not None and rest <= 0):
                    return
    except (OSError, WeightsError):
        return


def _read_blocks(path: Path) -> Generator[int]:
    """Read the blocks of a file that are not in the cache, and yield the size of each."""
    size, buffer = path.stat().st_size, bytearray(BLOCK)
    with path.open("rb", buffering=0) as file:
        for start in range(0, size, BLOCK):
            if not is_cached(file, min(start + BLOCK, size) - 1):
                file.seek(start)
                yield file.readinto(buffer)


def is_cached(file: FileIO, offset: int) -> bool:
    """Return whether a byte of a file is in the system's cache; False where that cannot be found out."""
    try:
        return os.preadv(file.fileno(), [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except (OSError, AttributeError):  # BlockingIOError: it is not; others: not supported
        return False


def read_available_memory() -> int | None:
    """Return the bytes that programs and the cache can still use; None where the system does not say."""
    try:
        lines = MEMORY.read_text().splitlines()
    except OSError:
        return None
    found = (line.split() for line in lines if line.startswith("MemAvailable:"))
    return next((int(words[1]) << 10 for words in found), None)
