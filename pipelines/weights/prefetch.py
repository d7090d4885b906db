"""Read files into the system's cache in a thread, while the program imports and plans what it needs to use them.

Needs no torch, whose import takes as long as reading some gigabytes.
"""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from pipelines.errors import WeightsError
from pipelines.weights.checkpoint import checkpoint_files, open_checkpoint

BLOCK = 1 << 24
MEMORY_SHARE = 2
"""One part in so many of the available memory is filled. What is read first is dropped first where it is short, and
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
    buffer = bytearray(BLOCK)
    try:
        for file in (file for path in checkpoints for file in checkpoint_files(open_checkpoint(path))):
            with file.open("rb", buffering=0) as stream:
                while not stop.is_set() and (rest is None or rest > 0) and (count := stream.readinto(buffer)):
                    rest = None if rest is None else rest - count
    except (OSError, WeightsError):
        return


def read_available_memory() -> int | None:
    """Return the bytes that programs and the cache can still use; None where the system does not say."""
    try:
        lines = MEMORY.read_text().splitlines()
    except OSError:
        return None
    found = (line.split() for line in lines if line.startswith("MemAvailable:"))
    return next((int(words[1]) << 10 for words in found), None)
