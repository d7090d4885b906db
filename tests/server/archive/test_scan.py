"""Bringing the index up to date with the files."""

from threading import Event

import pytest
from archived_files import build_name, put_file, write_comment, write_picture

from server.archive.picture_index import PictureIndex
from server.archive.scan import ScanResult, scan_folder


@pytest.fixture
def index(tmp_path):
    return PictureIndex(tmp_path)


def scan(index):
    return scan_folder(index.path.parent, index, Event())


def list_indexed(index):
    return {file for folder in index.list_folders() for file in index.list_files(folder)}


def test_an_index_is_made_from_the_files_alone(index, tmp_path):
    files = {
        put_file(tmp_path, build_name(number, days=number % 3, suffix=suffix), write_comment("1girl", suffix))
        for number, suffix in enumerate(["png", "webp"] * 60)
    }
    assert scan(index) == ScanResult(added=120)
    assert list_indexed(index) == files
    assert scan(index) == ScanResult()


def test_what_was_deleted_added_or_moved_is_noticed(index, tmp_path):
    files = [
        put_file(tmp_path, build_name(number, days=number), write_comment("1girl")) for number in range(4)
    ]
    scan(index)
    (tmp_path / files[0]).unlink()
    (tmp_path / files[0]).parent.rmdir()
    moved = f"2020-01-01/{files[1].partition('/')[2]}"
    (tmp_path / moved).parent.mkdir()
    (tmp_path / files[1]).rename(tmp_path / moved)
    new = put_file(tmp_path, build_name(9), write_comment("1boy"))
    scan(index)
    assert list_indexed(index) == {moved, *files[2:], new}


def test_other_files_are_left_alone(index, tmp_path):
    for path in ("2026-11-01/holiday.png", "notes/a.png", ".parts/x-1.part", "2026-11-01/.parts"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(write_picture())
    damaged = put_file(tmp_path, build_name(0), write_picture()[:50])
    good = put_file(tmp_path, build_name(1), write_picture())
    assert scan(index) == ScanResult(added=1, unreadable=1)
    assert list_indexed(index) == {good}
    assert (tmp_path / damaged).exists()
    assert (tmp_path / "2026-11-01/holiday.png").exists()


def test_a_scan_can_be_given_up(index, tmp_path):
    put_file(tmp_path, build_name(0), write_picture())
    is_stopping = Event()
    is_stopping.set()
    assert scan_folder(tmp_path, index, is_stopping) == ScanResult()
    assert scan(index) == ScanResult(added=1)
