"""ZIP files as the standard library reads and writes them."""

from io import BytesIO
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import pytest

from server.api.zip_file import zip_images

IMAGES = [b"first", b"", bytes(range(256)) * 999, b"last"]


def open_zip(images, suffix="png"):
    return ZipFile(BytesIO(zip_images(images, suffix)))


@pytest.mark.parametrize("suffix", ["png", "webp"])
@pytest.mark.parametrize("count", range(len(IMAGES) + 1))
def test_a_zip_is_the_one_that_zipfile_writes(count, suffix):
    file = BytesIO()
    with ZipFile(file, "w", ZIP_STORED) as archive:
        for index, image in enumerate(IMAGES[:count]):
            archive.writestr(ZipInfo(f"image_{index}.{suffix}"), image)
    assert zip_images(IMAGES[:count], suffix) == file.getvalue()


def test_a_zip_stores_images_in_order_under_nai_names():
    with open_zip(IMAGES) as archive:
        assert archive.namelist() == [f"image_{index}.png" for index in range(4)]
        assert [archive.read(name) for name in archive.namelist()] == IMAGES
        assert archive.testzip() is None
        assert {entry.compress_type for entry in archive.infolist()} == {ZIP_STORED}
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_entries_are_named_by_format_and_are_readable_when_unpacked():
    with open_zip([b"a"], "webp") as archive:
        assert archive.namelist() == ["image_0.webp"]
        assert archive.infolist()[0].external_attr >> 16 & 0o400
