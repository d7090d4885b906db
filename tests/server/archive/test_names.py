"""Names of archived files: what they say, in any time zone, and what is none."""

import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.archive.names import PictureName, parse_name, tag_account, to_local_time, to_milliseconds

REQUEST = "5f0c9a3be1d24477"
TAG = tag_account("anna")
MOMENT = datetime(2026, 11, 29, 23, 30, 5, 123456, UTC)


def test_a_name_shows_local_time_number_seed_and_request():
    created = datetime(2026, 11, 29, 17, 36, 25, 123_000, timezone(timedelta(hours=1)))
    name = PictureName(created, REQUEST, 0, 1234567890, "", "png")
    assert name.path == f"2026-11-29/20261129-173625123+0100-0-1234567890-{REQUEST}.png"
    assert name.id == f"{REQUEST}-0"
    assert name.milliseconds == 1_795_970_185_123


@given(
    seconds=st.integers(1, 4_000_000_000),
    minutes=st.integers(-12 * 60, 14 * 60),
    index=st.integers(0, 99),
    seed=st.integers(0, 2**32 - 1),
    owner=st.sampled_from(["", TAG]),
    suffix=st.sampled_from(["png", "webp"]),
)
def test_a_name_is_read_back(seconds, minutes, index, seed, owner, suffix):
    zone = timezone(timedelta(minutes=minutes))
    whole = datetime.fromtimestamp(seconds, zone).replace(microsecond=seconds % 1000 * 1000)
    name = PictureName(whole, REQUEST, index, seed, owner, suffix)
    folder, _, file = name.path.partition("/")
    assert parse_name(file) == name
    assert folder == f"{whole:%Y-%m-%d}"


@pytest.mark.parametrize(
    "name",
    [
        "holiday.png",
        f"20261329-173625123+0100-0-1-{REQUEST}.png",
        f"20261129-173625123+0100-0-1-{REQUEST}.jpg",
        f"20261129-173625123+0100-0-1-{REQUEST}.png.part",
        f"../20261129-173625123+0100-0-1-{REQUEST}.png",
        f"20261129-173625123+0100-0-1-{REQUEST.upper()}.png",
        f"20261129-173625123+0100-0-1-{REQUEST}.png\n",
        "",
    ],
)
def test_other_files_are_none(name):
    assert parse_name(name) is None


@pytest.mark.parametrize(("zone", "folder"), [("UTC0", "2026-11-29"), ("CET-1", "2026-11-30")])
def test_the_folder_is_that_of_the_local_date(monkeypatch, zone, folder):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        local = to_local_time(MOMENT)
        assert PictureName(local, REQUEST, 0, 1, "", "png").path.startswith(f"{folder}/")
        assert to_milliseconds(local) == to_milliseconds(MOMENT)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_accounts_have_tags_of_their_own():
    assert len({tag_account(name) for name in ("anna", "Anna", "../..", "")}) == 4
