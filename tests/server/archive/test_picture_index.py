"""The index: its schema and versions, damage, and use by several processes."""

import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from dataclasses import replace

import pytest
from archived_files import build_name, write_comment
from paths import ROOT
from waiting import PROCESS_LIMIT

from server.archive import picture_index
from server.archive.picture_index import MIGRATIONS, NewerIndex, PictureIndex, is_damage
from server.archive.records import read_record


def build_record(number=0, prompt="1girl", **changes):
    name = build_name(number)
    return replace(read_record(name, name.path, write_comment(prompt)), **changes)


def read_all(index):
    with closing(sqlite3.connect(index.path)) as connection:
        return connection.execute("SELECT id, prompt FROM pictures ORDER BY id").fetchall()


@pytest.fixture
def index(tmp_path):
    index = PictureIndex(tmp_path)
    index.prepare()
    return index


def test_pictures_are_added_once_and_removed(index):
    records = [build_record(number) for number in range(3)]
    index.add(records)
    index.add(records[:2])
    folder = records[0].file.partition("/")[0]
    assert index.list_folders() == {folder}
    assert index.list_files(folder) == {record.file for record in records}
    assert index.list_files("2026-11-0") == index.list_files("2025-01-01") == set()
    index.remove([records[0].file, "2026-11-01/unknown.png"])
    assert [row[0] for row in read_all(index)] == [record.id for record in records[1:]]


def test_a_file_that_has_moved_takes_the_place_of_its_row(index):
    record = build_record()
    index.add([record])
    index.add([replace(record, file=f"2020-01-01/{record.file.partition('/')[2]}")])
    assert len(read_all(index)) == 1
    assert index.list_folders() == {"2020-01-01"}


def test_only_the_owner_can_read_it(index):
    index.add([build_record()])
    with index._connect():
        found = sorted(index.path.parent.glob("naiad-index*"))
        assert {path.suffix for path in found} >= {".sqlite", ".sqlite-wal"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o600}


def test_a_failed_change_changes_nothing(index):
    with pytest.raises(sqlite3.IntegrityError):
        index.add([build_record(0), build_record(1, model=None)])
    assert read_all(index) == []


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
def test_an_older_schema_is_brought_up_to_date_and_keeps_its_pictures(tmp_path, monkeypatch, version):
    index = PictureIndex(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(picture_index, "MIGRATIONS", MIGRATIONS[:version])
        index.prepare()
        index.add([build_record()])
    index.is_new = False
    index.prepare()
    assert len(read_all(index)) == 1
    assert not index.is_new
    with index._connect() as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)


def test_a_newer_schema_is_refused_by_name(index):
    with closing(sqlite3.connect(index.path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(
        NewerIndex, match=f"naiad-index.sqlite has schema 99.*this one knows {len(MIGRATIONS)}"
    ):
        index.prepare()


def damage_header(path):
    path.write_bytes(b"this was an index once" * 1000)


def damage_pages(path):
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_header, damage_pages])
def test_damage_is_noticed_and_replaced(index, damage):
    index.add([build_record(number) for number in range(20)])
    damage(index.path)
    with pytest.raises(sqlite3.DatabaseError) as error:
        index.check()
    assert is_damage(error.value)
    index.is_new = False
    index.replace_damaged()
    assert index.is_new
    assert read_all(index) == []
    assert index.path.with_suffix(".damaged").exists()
    index.check()
    index.add([build_record()])
    index.replace_damaged()  # another process that has noticed it too
    assert len(read_all(index)) == 1


ADD_MANY = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from archived_files import build_name, write_comment
from server.archive.picture_index import PictureIndex
from server.archive.records import read_record
index = PictureIndex(Path(sys.argv[1]))
for number in range(int(sys.argv[2]), int(sys.argv[2]) + 30):
    name = build_name(number)
    index.add([read_record(name, name.path, write_comment("1girl"))])
"""


def test_several_processes_use_one_index(tmp_path):
    command = [sys.executable, "-c", ADD_MANY, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(100 * number)], cwd=ROOT) for number in range(3)]
    assert [process.wait(PROCESS_LIMIT) for process in processes] == [0, 0, 0]
    assert len(read_all(PictureIndex(tmp_path))) == 90
