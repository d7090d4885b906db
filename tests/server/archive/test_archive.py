"""The archive's thread: what it keeps, and that no failure reaches a request."""

import errno
import json
import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from threading import Semaphore

import pytest
from archived_files import write_comment, write_picture
from waiting import LIMIT, wait_until

from server.archive import archive as archive_module
from server.archive.archive import Archive
from server.archive.names import tag_account
from server.archive.picture_index import PictureIndex, PictureQuery
from server.config.toml import ConfigError

PNG = write_picture("png", {"Comment": json.dumps({"prompt": "1girl"})})
WEBP = write_picture("webp", {"Comment": json.dumps({"prompt": "1boy"})})
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
    archive.put(WEBP, REQUEST, 1, 8, "anna")
    archive.stop()
    first, second = list_pictures(tmp_path / "archive")
    assert (first.read_bytes(), second.read_bytes()) == (PNG, WEBP)
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


def test_each_failure_is_reported(tmp_path, monkeypatch):
    failures = []
    archive = Archive(tmp_path, on_failure=lambda: failures.append(1))
    archive.start()
    with monkeypatch.context() as patch:
        patch.setattr("server.archive.files.os.fsync", fail)
        for index in range(3):
            archive.put(PNG, REQUEST, index, 7, None)
        archive.stop()
    assert len(failures) == archive.failed == 3


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


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_folder_that_cannot_be_used_is_refused_at_the_start(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"archive = '.*file.*': not a folder; name a folder to write to"):
        Archive(tmp_path / name)


def list_indexed(folder):
    index = PictureIndex(folder)
    return {file for day in index.list_folders() for file in index.list_files(day)}


def list_paths(folder):
    return {str(path.relative_to(folder)) for path in list_pictures(folder)}


def put_and_wait(archive, count=1):
    kept = archive.kept
    for number in range(count):
        archive.put(PNG, f"{kept + number:016x}", 0, 7, None)
    wait_until(lambda: archive.kept == kept + count)


def test_kept_pictures_are_in_the_index(archive):
    put_and_wait(archive, 5)
    assert list_indexed(archive.folder) == list_paths(archive.folder)
    assert len(list_paths(archive.folder)) == 5


def damage(path):
    path.write_bytes(b"no index" * 1000)


@pytest.mark.parametrize("harm", [damage, Path.unlink])
def test_an_index_that_is_lost_while_the_server_runs_is_made_again(archive, harm):
    put_and_wait(archive, 5)
    harm(archive.folder / "naiad-index.sqlite")
    put_and_wait(archive)
    wait_until(lambda: len(list_indexed(archive.folder)) == 6)
    assert list_indexed(archive.folder) == list_paths(archive.folder)


@pytest.mark.parametrize("harm", [damage, Path.unlink])
def test_an_index_that_was_lost_is_made_again_at_the_start(tmp_path, harm):
    first = Archive(tmp_path)
    first.start()
    put_and_wait(first, 5)
    first.stop()
    harm(tmp_path / "naiad-index.sqlite")
    second = Archive(tmp_path)
    second.start()
    wait_until(lambda: not second.is_scanning)
    second.stop()
    assert list_indexed(tmp_path) == list_paths(tmp_path)
    assert len(list_paths(tmp_path)) == 5


def test_a_picture_whose_row_cannot_be_written_is_kept_and_added_later(archive, monkeypatch, caplog):
    def fail_to_add(*_):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(archive._index, "add", fail_to_add)
        put_and_wait(archive, 3)
    assert (
        caplog.text.count("archive: pictures are kept, but the index is not: database or disk is full") == 1
    )
    put_and_wait(archive)
    wait_until(lambda: len(list_indexed(archive.folder)) == 4)
    assert (archive.kept, archive.failed) == (4, 0)


def test_two_servers_share_a_folder(archive):
    other = Archive(archive.folder)
    other.start()
    for number in range(20):
        (archive, other)[number % 2].put(PNG, f"{number:016x}", 0, 7, None)
    wait_until(lambda: archive.kept + other.kept == 20)
    other.stop()
    assert list_indexed(archive.folder) == list_paths(archive.folder)
    assert len(list_paths(archive.folder)) == 20


def test_an_index_of_a_newer_version_is_refused_by_name(tmp_path):
    PictureIndex(tmp_path).prepare()
    with closing(sqlite3.connect(tmp_path / "naiad-index.sqlite")) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(
        ConfigError, match=r"has schema 99 of a newer naiad; this one .* or delete naiad-index"
    ):
        Archive(tmp_path)


def test_the_index_says_the_same_when_it_is_made_from_the_files(tmp_path):
    first = Archive(tmp_path)
    first.start()
    for number, file in enumerate([PNG, WEBP, write_comment("1girl, red hair"), write_picture()]):
        first.put(file, f"{number:016x}", number, 2**32 - 1 - number, "anna" if number % 2 else None)
    first.stop()
    before = first.find(PictureQuery())
    (tmp_path / "naiad-index.sqlite").unlink()
    second = Archive(tmp_path)
    second.start()
    wait_until(lambda: not second.is_scanning)
    second.stop()
    assert len(before) == 4
    assert second.find(PictureQuery()) == before
    assert [record.id for record in second.find(PictureQuery(words=["red"]))] == [f"{2:016x}-2"]
