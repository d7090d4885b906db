"""Writing files into the archive's folder, completely or not at all, also if the process is killed or the disk is full.

A file is written under another name first. What a killed process has left behind is removed by the next one that
starts; the files of processes that still run are not, because each holds a lock on a file of its own.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be removed
    fcntl = None

PARTS = ".parts"
"""Folder of the files that are being written."""


class FileWriter:
    """Writes files below a folder, which is created if it is missing.

    Raises `OSError` if it cannot be created or written.
    """

    def __init__(self, root: Path) -> None:
        self.root, self._parts = root, root / PARTS
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._parts.mkdir(mode=0o700, exist_ok=True)
        self._name, self._claim = _claim_name(self._parts)
        self._numbers = count()
        _remove_leftovers(self._parts, self._name)

    def write(self, path: str, data: bytes) -> None:
        """Write a file by its path below the folder; raise `OSError` and leave nothing behind if that fails.

        The folder itself is not created again: it may be where a disk is mounted that is gone.
        """
        target = self.root / path
        self._parts.mkdir(mode=0o700, exist_ok=True)
        part = self._parts / f"{self._name}-{next(self._numbers)}.part"
        try:
            with _create(part) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            target.parent.mkdir(mode=0o700, exist_ok=True)
            part.replace(target)
            _sync_folder(target.parent)
        except OSError:
            with suppress(OSError):
                part.unlink()
            raise

    def close(self) -> None:
        """Give up the lock."""
        self._claim.close()
        with suppress(OSError):
            (self._parts / f"{self._name}.lock").unlink()


@contextmanager
def hold_lock(path: Path) -> Generator[None]:
    """Keep other processes out of the same block with the same lock file, which is created and stays."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        _lock(file)
        yield


def _claim_name(parts: Path) -> tuple[str, BinaryIO]:
    """Return a new name for this process's files, and the open file whose lock says that the process runs."""
    while True:
        name = token_hex(8)
        path = parts / f"{name}.lock"
        file = _create(path)
        _lock(file)
        if path.exists():
            return name, file
        file.close()  # another process has taken it for a leftover before it was locked


def _remove_leftovers(parts: Path, own_name: str) -> None:
    """Remove the files of processes that no longer run."""
    living = {own_name}
    for lock in parts.glob("*.lock"):
        if lock.stem != own_name and not _remove_if_unlocked(lock):
            living.add(lock.stem)
    for part in parts.glob("*.part"):
        if part.stem.partition("-")[0] not in living:
            part.unlink(missing_ok=True)


def _remove_if_unlocked(lock: Path) -> bool:
    """Remove a lock file that no process holds, and return whether it is gone."""
    try:
        with lock.open("rb") as file:
            if not _lock(file, wait=False):
                return False
            if fcntl is not None:
                lock.unlink()
        lock.unlink(missing_ok=True)  # fails on Windows while another process has it open
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _lock(file: BinaryIO, wait: bool = True) -> bool:
    """Lock an open file, and return whether that succeeded. Some network file systems have no locks."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _create(path: Path) -> BinaryIO:
    """Create a file that only its owner can read."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags, 0o600), "r+b")


def _sync_folder(folder: Path) -> None:
    """Make new names in a folder durable, where the system can."""
    if fcntl is None:  # Windows opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
