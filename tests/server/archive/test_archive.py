"""The archive's thread: what it keeps, and that no failure reaches a request."""

import errno
import logging
import os
from threading import Semaphore

import pytest
from waiting import LIMIT, wait_until

from server.archive import archive as archive_module
from server.archive.archive import Archive
from server.archive.names import tag_account
from server.config.toml import ConfigError

PNG = b"\x89PNG\r\n\x1a\n and the rest"
REQUEST = "5f0c9a3be1d24477"


@pytest.fixture
def archive(tmp_path):
    archive = Archive(tmp_path / "archive")
    archive.start()
    yield archive
    archive.stop()


def list_pictures(folder):
    return sorted(path for path in folder.glob("*-*-*/*"))


def test_the_very_bytes_are_kept(archive, tmp_path):
    archive.put(PNG, REQUEST, 0, 7, None)
    archive.put(b"RIFF and so on", REQUEST, 1, 8, "anna")
    archive.stop()
    first, second = list_pictures(tmp_path / "archive")
    assert (first.read_bytes(), second.read_bytes()) == (PNG, b"RIFF and so on")
    assert first.name.endswith(f"-0-7-{REQUEST}.png")
    assert second.name.endswith(f"-1-8-{REQUEST}-{tag_account('anna')}.webp")
    assert (archive.kept, archive.failed) == (2, 0)


def fail(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_counted_and_logged_once(archive, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    with monkeypatch.context() as patch:
        patch.setattr("server.archive.files.os.fsync", fail)
        for index in range(5):
            archive.put(PNG, REQUEST, index, 7, None)
        wait_until(lambda: archive.failed == 5)
    assert caplog.text.count("archive: pictures are not kept, only sent: No space left on device") == 1
    archive.put(PNG, REQUEST, 5, 7, None)
    wait_until(lambda: archive.kept == 1)
    assert "archive: pictures are kept again; 5 were not since the start" in caplog.text
    assert len(caplog.records) == 2
    assert len(list_pictures(tmp_path / "archive")) == 1


def test_a_slow_disk_fills_no_memory_and_holds_up_nothing(archive, monkeypatch, caplog):
    gate, write = Semaphore(0), archive._files.write

    def write_slowly(path, data):
        assert gate.acquire(timeout=LIMIT)
        write(path, data)

    monkeypatch.setattr(archive._files, "write", write_slowly)
    monkeypatch.setattr(archive_module, "WAITING_LIMIT", 3 * len(PNG))
    for index in range(8):
        archive.put(PNG, REQUEST, index, 7, None)
    assert archive.failed == 5
    assert caplog.text.count("the disk is too slow") == 1
    gate.release(8)
    wait_until(lambda: archive.kept == 3)
    archive.put(PNG, REQUEST, 9, 7, None)
    wait_until(lambda: archive.kept == 4)
    assert archive.failed == 5


def test_an_unexpected_error_does_not_end_the_thread(archive, monkeypatch, caplog):
    def break_down(*_):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(archive._files, "write", break_down)
        archive.put(PNG, REQUEST, 0, 7, None)
        wait_until(lambda: archive.failed == 1)
    archive.put(PNG, REQUEST, 1, 7, None)
    wait_until(lambda: archive.kept == 1)
    assert "ZeroDivisionError" in caplog.text


def test_a_folder_that_cannot_be_used_is_refused_at_the_start(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"archive = '.*file': File exists; name a folder to write to"):
        Archive(tmp_path / "file")
