"""The files that a command writes: checked and reserved before the work, written completely or not at all.

A file that exists is only replaced on request.
"""

import os
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from errno import EDQUOT, EFBIG, ENOSPC
from itertools import count
from pathlib import Path
from secrets import token_hex

from server.config.toml import ConfigError

NO_ROOM = (ENOSPC, EDQUOT, EFBIG)
FLAG = "--output"
"""The option that names a file, as messages have it."""


@dataclass(frozen=True, slots=True)
class OutputChoice:
    """Where the user wants a command's files: the option --output if given, else the first free default name."""

    given: Path | None
    default: Path
    force: bool  # whether files that exist are replaced

    @property
    def path(self) -> Path:
        """The file that names the format."""
        return self.given or self.default

    def choose_paths(self, number: int) -> list[Path]:
        """Return the paths of a number of files, or raise `ConfigError` if one must not or cannot be written."""
        paths = number_paths(self.path, number)
        if self.given is None and not self.force:
            candidates = (number_paths(with_number(self.default, attempt), number) for attempt in count())
            return next(free for free in candidates if not any(map(_exists, free)))
        for path in paths:
            check_output(path, self.force)
        return paths


@dataclass(frozen=True, slots=True)
class ReservedFile:
    """A temporary file in the folder of the file to write, so that it can be renamed to it."""

    path: Path
    temporary: Path
    force: bool

    def publish(self, data: bytes) -> Path:
        """Write the file and return its path: another one if a file has appeared there meanwhile."""
        try:
            with self.temporary.open("r+b") as file:
                file.write(data)
                file.truncate()
            path = self.path if self.force else self._claim_path()
            # a link stays, and the file that it leads to is replaced
            self.temporary.replace(path.resolve() if self.force else path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        return path

    def _claim_path(self) -> Path:
        """Create an empty file at the first free path, which no other process can take then."""
        for attempt in count():
            path = with_number(self.path, attempt)
            with suppress(FileExistsError):
                path.touch(exist_ok=False)
                return path
        raise AssertionError


def with_number(path: Path, attempt: int) -> Path:
    """Return `out.png` as `out-1.png`, `out-2.png` and so on; attempt 0 is the path itself."""
    return path.with_stem(f"{path.stem}-{attempt}") if attempt else path


def number_paths(path: Path, number: int) -> list[Path]:
    """Return the paths of the images of one request: `out.png`, `out_1.png`, `out_2.png` and so on."""
    return [path.with_stem(f"{path.stem}_{index}") if index else path for index in range(number)]


def check_output(path: Path, force: bool, flag: str = FLAG) -> None:
    """Raise `ConfigError` if a path is a folder or a device, or a file that must not be replaced."""
    if path == Path():  # what becomes of an empty text too
        raise ConfigError(f"{flag} names no file")
    if path.is_dir():
        raise ConfigError(f"{flag} {str(path)!r} is a folder; name a file in it")
    if _exists(path) and not force:
        raise ConfigError(f"{flag} {str(path)!r} exists already; name another file, or add --force")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{flag} {str(path)!r} is not a regular file; name another one")


@contextmanager
def reserve_files(
    paths: Sequence[Path], size: int, force: bool, flag: str = FLAG
) -> Generator[list[ReservedFile]]:
    """Create missing folders and temporary files with room for `size` bytes each, which are removed in the end.

    Raises `ConfigError` if a folder cannot be written or has no room.
    """
    reserved: list[ReservedFile] = []
    with ExitStack() as stack:
        for path in paths:
            file = _reserve(path, size, force, flag)
            stack.callback(file.temporary.unlink, missing_ok=True)
            reserved.append(file)
        yield reserved


def _reserve(path: Path, size: int, force: bool, flag: str) -> ReservedFile:
    folder = (path.resolve() if force else path).parent
    temporary = folder / f".naiad-{token_hex(8)}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            _allocate(file.fileno(), size)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        reason = error.strerror
        if isinstance(error, FileExistsError | NotADirectoryError):
            reason = f"{str(folder)!r} is not a folder"
        elif error.errno in NO_ROOM:
            reason = f"there is no room for the {size // 1024 + 1} KiB that it may need"
        raise ConfigError(f"{flag} {str(path)!r} cannot be written: {reason}") from None
    return ReservedFile(path, temporary, force)


def _allocate(file: int, size: int) -> None:
    """Reserve room on the disk, where system and file system can; raise `OSError` if there is not enough."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise


def _exists(path: Path) -> bool:
    """Return whether there is anything at a path, a broken link included."""
    return os.path.lexists(path)
