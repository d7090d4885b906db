"""Folders of safetensors files that requests name: the names in one, and a file by its name."""

import os
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pipelines.errors import WeightsError
from pipelines.weights.checkpoint import fingerprint

SUFFIX = ".safetensors"
SURROGATE = re.compile("[\ud800-\udfff]")
"""A byte of a file name that is not UTF-8."""
Content = TypeVar("Content")
FileState = tuple[int, int, int]
"""By what a file that was replaced or changed is recognized."""
MOST_FILES = 64
"""Number of files whose headers are kept; one of a LoRA takes 2 MB."""
MOST_CARDS = 1 << 14
"""Number of entries of `/models` that are kept; one takes 1 KB."""


def list_names(folder: Path) -> list[str]:
    """Return the names of the safetensors files in a folder, sorted.

    Names that are not Unicode are left out: neither a request nor a response can hold them.

    Raises:
        WeightsError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:  # tells files from folders without asking for the state of each
            return sorted(entry.name.removesuffix(SUFFIX) for entry in entries if _is_named(entry))
    except OSError as error:
        raise WeightsError(folder, f"the folder cannot be read: {error.strerror}") from error


def _is_named(entry: os.DirEntry[str]) -> bool:
    name = entry.name
    if not name.endswith(SUFFIX) or name == SUFFIX or SURROGATE.search(name):
        return False
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def open_named(folder: Path, name: str, read: Callable[[Path], Content]) -> tuple[Content, str]:
    """Return what `read` makes of a file, and the file's fingerprint; raise WeightsError if it cannot be used."""
    path = folder / f"{name}{SUFFIX}"
    return cast("tuple[Content, str]", _read(read, path, _read_state(path)))


def _read_state(path: Path) -> FileState:
    try:
        status = path.stat()
    except OSError as error:
        raise WeightsError(path, f"cannot be read: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns, status.st_ino


@lru_cache(MOST_FILES)
def _read(read: Callable[[Path], Any], path: Path, _state: FileState) -> tuple[Any, str]:
    """Read a file and its fingerprint, once for each state of the file."""
    return read(path), fingerprint(path)


def build_cards(
    folder: Path | None, describe: Callable[[Path, str], Mapping[str, object]]
) -> list[dict[str, object]]:
    """Return the entry of `/models` for each file; one that cannot be used has `name` and `problem` only.

    If the folder itself cannot be read, the only entry has a `problem`.
    """
    if folder is None:
        return []
    try:
        names = list_names(folder)
    except WeightsError as error:
        return [{"problem": error.reason}]
    cards: list[dict[str, object]] = []
    for name in names:
        try:
            cards.append(dict(_describe(describe, folder, name, _read_state(folder / f"{name}{SUFFIX}"))))
        except WeightsError as error:
            cards.append({"name": name, "problem": error.reason})
    return cards


@lru_cache(MOST_CARDS)
def _describe(
    describe: Callable[[Path, str], Mapping[str, object]], folder: Path, name: str, _state: FileState
) -> Mapping[str, object]:
    """Return a file's entry, made once for each state of the file."""
    try:
        return describe(folder, name)
    except WeightsError as error:
        return {"name": name, "problem": error.reason}
