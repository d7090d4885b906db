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
from server.archive.picture_index import MIGRATIONS, NewerIndex, PictureIndex, PictureQuery, is_damage
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


def find(index, **query):
    """The numbers of the pictures that are found."""
    return [int(record.request_id, 16) for record in index.find(PictureQuery(**query))]


@pytest.fixture(params=[True, False], ids=["full text", "without"])
def searched(index, request):
    index.has_words = index.has_words and request.param
    return index


PROMPTS = [
    "1girl, red hair, smile",
    "1girl, red_hair",
    "1boy, blue hair",
    "{artist:Müller}, café, красные ВОЛОСЫ",
]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["1girl"], [1, 0]),
        (["HAIR"], [2, 1, 0]),
        (["red", "hair"], [1, 0]),
        (["hair", "smile"], [0]),
        (["blue", "1girl"], []),
        (["artist"], [3]),
        (["red"], [1, 0]),
        ([], [3, 2, 1, 0]),
    ],
)
def test_words_are_found_in_prompts(searched, words, found):
    searched.add([build_record(number, prompt) for number, prompt in enumerate(PROMPTS)])
    assert find(searched, words=words) == found


def test_full_text_search_folds_case_and_accents(index):
    index.add([build_record(number, prompt) for number, prompt in enumerate(PROMPTS)])
    assert [find(index, words=[word]) for word in ("muller", "cafe", "волосы", "ed", "smil")] == [
        *([3], [3], [3]),
        *([], []),
    ]


def test_removed_and_replaced_prompts_are_not_found(index):
    index.add([build_record(0, "red"), build_record(1, "red")])
    index.remove([build_record(0).file])
    index.add([build_record(1, "blue")])
    assert (find(index, words=["red"]), find(index, words=["blue"])) == ([], [1])


def test_words_that_another_sqlite_did_not_look_up_are_added(index):
    index.add([build_record(0, "red")])
    index.has_words = False
    index.add([build_record(1, "blue")])
    index.has_words = True
    index.prepare()
    assert (find(index, words=["red"]), find(index, words=["blue"])) == ([0], [1])


def test_conditions_are_combined(index):
    index.add(build_record(number, owner="ab"[number % 2], model=f"m{number // 4}") for number in range(8))
    middle = build_record(3).created
    assert find(index, owner="a") == [6, 4, 2, 0]
    assert find(index, model="m0", owner="b") == [3, 1]
    assert find(index, model="94712E0C", limit=2) == [7, 6]
    assert find(index, since=middle, until=middle + 2000) == [4, 3]
    assert find(index, model="m2") == []


def test_pages_stay_the_same_while_pictures_come_and_go(index):
    index.add(build_record(number, created=number // 3) for number in range(20))
    seen, before = [], None
    while page := index.find(PictureQuery(before=before, limit=4)):
        seen += [int(record.request_id, 16) for record in page]
        before = (page[-1].created, page[-1].id)
        index.remove([page[-1].file])
        index.add([build_record(100 + len(seen), created=1000)])
    assert seen == list(range(19, -1, -1))


def test_a_picture_is_only_its_owners(index):
    index.add([build_record(0, owner="a"), build_record(1)])
    ids = build_record(0).id, build_record(1).id
    assert [index.get(ids[0], owner) is not None for owner in (None, "a", "b", "")] == [
        True,
        True,
        False,
        False,
    ]
    assert [index.get(ids[1], owner) is not None for owner in (None, "a", "")] == [True, False, True]
    assert index.get("nothing", None) is None
