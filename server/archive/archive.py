"""The archive of pictures: takes each one without waiting, and writes it in a thread of its own."""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Condition, Thread

from server.archive.files import FileWriter
from server.archive.names import PictureName, tag_account, to_local_time
from server.config.toml import ConfigError
from server.picture.png import SIGNATURE

log = logging.getLogger("naiad")
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
    """Keeps pictures in a folder.

    A picture that cannot be kept never fails its request: it is counted, and the log has a line when that begins and
    one when it ends.

    Args:
        now: returns the current time in UTC.

    Attributes:
        kept: how many pictures have been written since the start.
        failed: how many were not, because the disk is full, read-only, gone or too slow.

    Raises:
        ConfigError: the folder cannot be used.
    """

    def __init__(self, folder: Path, now: Callable[[], datetime] = utc_now) -> None:
        try:
            self._files = FileWriter(folder)
        except OSError as error:
            raise ConfigError(f"archive = '{folder}': {error.strerror}; name a folder to write to") from None
        self._now = now
        self._changed = Condition()
        self._waiting: deque[WaitingPicture] = deque()
        self._bytes = 0  # of waiting pictures and of the one that is being written
        self._is_stopping = self._is_failing = False
        self._thread = Thread(target=self._run, name="archive", daemon=True)
        self.kept = self.failed = 0

    def start(self) -> None:
        """Begin to write pictures."""
        self._thread.start()

    def stop(self) -> None:
        """Return when all pictures that wait have been written."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join()
        self._files.close()

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

    def _run(self) -> None:
        while (picture := self._take()) is not None:
            failure = self._keep(picture)
            with self._changed:
                self._bytes -= len(picture.file)
                if failure is None:
                    self._report_success()
                else:
                    self._report_failure(failure)

    def _take(self) -> WaitingPicture | None:
        """Return the next picture, or None if there is none and the archive is stopping."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_stopping)
            return self._waiting.popleft() if self._waiting else None

    def _keep(self, picture: WaitingPicture) -> str | None:
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
        if not self._is_failing:
            self._is_failing = True
            log.error("archive: pictures are not kept, only sent: %s (%s)", reason, self._files.root)

    def _report_success(self) -> None:
        self.kept += 1
        if self._is_failing and not self._waiting:
            self._is_failing = False
            log.info("archive: pictures are kept again; %d were not since the start", self.failed)
