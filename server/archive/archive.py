"""The archive of pictures: takes each one without waiting, and writes it in a thread of its own."""

import logging
import sqlite3
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Condition, Event, Thread
from typing import TypeVar

from server.archive.files import FileWriter
from server.archive.names import PictureName, tag_account, to_local_time
from server.archive.picture_index import NewerIndex, PictureIndex, PictureQuery, is_damage
from server.archive.records import PictureRecord, read_record
from server.archive.scan import scan_folder
from server.config.toml import ConfigError
from server.errors import Unavailable
from server.picture.png import SIGNATURE

log = logging.getLogger("naiad")
Value = TypeVar("Value")
WAITING_LIMIT = 256 << 20
"""Bytes of pictures that wait to be written; what comes while there are more is not kept."""


def utc_now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class WaitingPicture:
    """A picture's file that is to be written under a name."""

    name: PictureName
    file: bytes = field(repr=False)


class Archive:
    """Keeps pictures in a folder, with an index.

    A picture that cannot be kept never fails its request: it is counted, and the log has a line when that begins and
    one when it ends.

    Args:
        on_failure: called for each picture that is not kept, on any thread.
        now: returns the current time in UTC.

    Attributes:
        kept: how many pictures have been written since the start.
        failed: how many were not, because the disk is full, read-only, gone or too slow.

    Raises:
        ConfigError: the folder cannot be used, or its index is of a newer version of naiad.
    """

    def __init__(
        self,
        folder: Path,
        on_failure: Callable[[], None] | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.folder, self._on_failure, self._now = folder, on_failure, now
        self._files = _open_files(folder)
        try:
            self._index = _open_index(folder)
        except ConfigError:
            self._files.close()
            raise
        self._changed = Condition()
        self._waiting: deque[WaitingPicture] = deque()
        self._bytes = 0  # of waiting pictures and of the one that is being written
        self._is_failing = self._is_index_failing = False
        self._is_stopping = Event()
        self._thread = Thread(target=self._run, name="archive", daemon=True)
        self._scan: Thread | None = None
        self.kept = self.failed = 0

    def start(self) -> None:
        """Begin to write pictures, and to compare the index with the files."""
        self._start_scan()
        self._thread.start()

    def stop(self) -> None:
        """Return when all pictures that wait have been written; a scan is given up."""
        with self._changed:
            self._is_stopping.set()
            self._changed.notify()
        self._thread.join()
        if self._scan is not None:
            self._scan.join()
        self._files.close()

    @property
    def is_scanning(self) -> bool:
        """Whether the index is being compared with the files, so that pictures may be missing in it."""
        return self._scan is not None and self._scan.is_alive()

    def put(self, file: bytes, request_id: str, index: int, seed: int, account: str | None) -> None:
        """Take a picture that is about to be sent; it is written later. Can be called on any thread."""
        owner, suffix = (
            tag_account(account) if account else "",
            "png" if file.startswith(SIGNATURE) else "webp",
        )
        created = to_local_time(self._now())
        picture = WaitingPicture(PictureName(created, request_id, index, seed, owner, suffix), file)
        with self._changed:
            if self._bytes + len(file) > WAITING_LIMIT:
                self._report_failure(f"{WAITING_LIMIT >> 20} MiB wait to be written; the disk is too slow")
                return
            self._waiting.append(picture)
            self._bytes += len(file)
            self._changed.notify()

    def find(self, query: PictureQuery) -> list[PictureRecord]:
        """Return the pictures that a query asks for, the newest first; raise `Unavailable` if that is not possible."""
        return self._read(lambda: self._index.find(query))

    def get(self, id: str, owner: str | None) -> PictureRecord | None:
        """Return a picture, or None if there is none, or it is another owner's; raise as above."""
        return self._read(lambda: self._index.get(id, owner))

    def delete(self, id: str, owner: str | None) -> bool:
        """Delete a picture, and return whether there was one; raise as above."""
        record = self.get(id, owner)
        if record is None:
            return False

        def delete_record() -> None:
            (self.folder / record.file).unlink(missing_ok=True)
            self._index.remove([record.file])

        self._read(delete_record)
        return True

    def _read(self, use: Callable[[], Value]) -> Value:
        try:
            return self._use_index(use)
        except (OSError, sqlite3.Error) as error:
            log.error("archive: a request for pictures has failed: %s (%s)", error, self.folder)
            raise Unavailable("the archive cannot be used now; the server's log has the reason") from None

    def _run(self) -> None:
        while (picture := self._take()) is not None:
            failure = self._write(picture)
            if failure is None:
                self._add_to_index(picture)
            with self._changed:
                self._bytes -= len(picture.file)
                if failure is None:
                    self._report_success()
                else:
                    self._report_failure(failure)

    def _take(self) -> WaitingPicture | None:
        """Return the next picture, or None if there is none and the archive is stopping."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_stopping.is_set())
            return self._waiting.popleft() if self._waiting else None

    def _write(self, picture: WaitingPicture) -> str | None:
        """Write a picture; return why it could not be."""
        try:
            self._files.write(picture.name.path, picture.file)
        except OSError as error:
            return error.strerror or type(error).__name__
        except Exception:
            log.exception("archive: a picture could not be written")
            return "an internal error"
        return None

    def _report_failure(self, reason: str) -> None:
        self.failed += 1
        if self._on_failure is not None:
            self._on_failure()
        if not self._is_failing:
            self._is_failing = True
            log.error("archive: pictures are not kept, only sent: %s (%s)", reason, self.folder)

    def _report_success(self) -> None:
        self.kept += 1
        if self._is_failing and not self._waiting:
            self._is_failing = False
            log.info("archive: pictures are kept again; %d were not since the start", self.failed)

    def _add_to_index(self, picture: WaitingPicture) -> None:
        """Add a picture to the index; one that cannot be added is found by a later scan."""
        try:
            record = read_record(picture.name, picture.name.path, picture.file)
            self._use_index(lambda: self._index.add([record]))
        except Exception as error:  # noqa: BLE001  # the picture is kept
            if not self._is_index_failing:
                self._is_index_failing = True
                log.error(
                    "archive: pictures are kept, but the index is not: %s (%s)", error, self._index.path
                )
        else:
            if self._is_index_failing or self._index.is_new:
                self._is_index_failing = False
                self._start_scan()

    def _use_index(self, use: Callable[[], Value]) -> Value:
        """Return what a function that uses the index returns; if the index is damaged, replace it first."""
        try:
            return use()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            log.error("archive: %s is damaged and is made again from the pictures", self._index.path)
            self._index.replace_damaged()
            self._start_scan()
            return use()

    def _start_scan(self) -> None:
        with self._changed:
            if not self.is_scanning and not self._is_stopping.is_set():
                self._scan = Thread(target=self._run_scan, name="archive scan", daemon=True)
                self._scan.start()

    def _run_scan(self) -> None:
        try:
            self._use_index(self._index.check)
            self._index.is_new = False
            result = scan_folder(self.folder, self._index, self._is_stopping)
        except (OSError, sqlite3.Error) as error:
            log.error("archive: the index was not compared with the pictures: %s (%s)", error, self.folder)
            return
        if result.added or result.removed or result.unreadable:
            changes = result.added, result.removed, result.unreadable
            log.info("archive: index: %d pictures added, %d removed; %d files are damaged", *changes)


def _open_files(folder: Path) -> FileWriter:
    try:
        return FileWriter(folder)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"archive = '{folder}': not a folder; name a folder to write to") from None
    except OSError as error:
        raise ConfigError(f"archive = '{folder}': {error.strerror}; name a folder to write to") from None


def _open_index(folder: Path) -> PictureIndex:
    """Return the index of a folder; if it is damaged, a scan will replace it."""
    index = PictureIndex(folder)
    try:
        index.prepare()
    except NewerIndex as error:
        raise ConfigError(
            f"archive = '{folder}': {error}. Run that version, name another folder, or delete {index.path.name}: "
            "it is made again from the pictures"
        ) from None
    except sqlite3.Error as error:
        if not is_damage(error):
            raise ConfigError(f"archive = '{folder}': {index.path.name}: {error}") from None
    return index
