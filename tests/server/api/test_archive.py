from io import BytesIO
from zipfile import ZIP_STORED, ZipFile

from server.api.archive import zip_pictures


def test_pictures_are_stored_in_order_under_nai_names():
    with ZipFile(BytesIO(zip_pictures([b"first", b"second"]))) as archive:
        assert archive.namelist() == ["image_0.png", "image_1.png"]
        assert [archive.read(name) for name in archive.namelist()] == [b"first", b"second"]
        assert archive.testzip() is None
        assert {entry.compress_type for entry in archive.infolist()} == {ZIP_STORED}


def test_the_same_pictures_make_the_same_archive():
    assert zip_pictures([b"a", b"b"]) == zip_pictures([b"a", b"b"])
    with ZipFile(BytesIO(zip_pictures([b"a"]))) as archive:
        assert archive.infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)


def test_entries_are_named_for_their_format_and_can_be_read_once_unpacked():
    with ZipFile(BytesIO(zip_pictures([b"a"], "webp"))) as archive:
        assert archive.namelist() == ["image_0.webp"]
        assert archive.infolist()[0].external_attr >> 16 & 0o400
