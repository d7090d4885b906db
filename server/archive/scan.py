"""Comparing the index with the files, which are the truth: what it lacks is added, what is gone is removed."""

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Event

from server.archive.names import FOLDER, parse_name
from server.archive.picture_index import PictureIndex
from server.archive.records import PictureRecord, read_record
from server.picture.parts import UnreadableFile

BATCH = 50
"""Pictures that are added at a time."""


@dataclass(slots=True)
class ScanResult:
    """How many pictures were added to the index and removed from it, and how many files could not be read."""

    added: int = 0
    removed: int = 0
    unreadable: int = 0


def scan_folder(root: Path, index: PictureIndex, is_stopping: Event) -> ScanResult:
    """Bring the index up to date with the files in an archive's folder, the newest first; `is_stopping` ends it.

    Raises `OSError` or `sqlite3.Error` if that is not possible.
    """
    result = ScanResult()
    present = {entry.name for entry in root.iterdir() if FOLDER.fullmatch(entry.name) and entry.is_dir()}
    for folder in sorted(present | index.list_folders(), reverse=True):
        if is_stopping.is_set():
            break
        known = index.list_files(folder)  # before the files are listed: a new one is not taken for gone
        files = _list_files(root / folder) if folder in present else set[str]()
        gone = known - files
        index.remove(gone)
        result.removed += len(gone)
        records = _read_records(root, sorted(files - known, reverse=True), is_stopping, result)
        for batch in _take_batches(records):
            index.add(batch)
            result.added += len(batch)
    return result


def _list_files(folder: Path) -> set[str]:
    """Return the paths of the archived pictures in a folder, below the one around it."""
    return {f"{folder.name}/{path.name}" for path in folder.iterdir() if parse_name(path.name) is not None}


def _read_records(
    root: Path, files: Iterable[str], is_stopping: Event, result: ScanResult
) -> Generator[PictureRecord]:
    for file in files:
        if is_stopping.is_set():
            return
        name = parse_name(file.partition("/")[2])
        try:
            if name is not None:
                yield read_record(name, file, (root / file).read_bytes())
        except (UnreadableFile, OSError):
            result.unreadable += 1


def _take_batches(records: Iterator[PictureRecord]) -> Iterator[list[PictureRecord]]:
    while batch := list(islice(records, BATCH)):
        yield batch
