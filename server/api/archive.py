"""Pictures as the ZIP that NAI answers with: stored, since they do not shrink, and the same bytes every time."""

from collections.abc import Sequence
from io import BytesIO
from zipfile import ZIP_STORED, ZipFile, ZipInfo


def zip_pictures(pictures: Sequence[bytes], suffix: str = "png") -> bytes:
    """Entries `image_0.png`, `image_1.png` and so on, dated 1980 as ZIP dates begin."""
    file = BytesIO()
    with ZipFile(file, "w", ZIP_STORED) as archive:
        for index, picture in enumerate(pictures):
            archive.writestr(ZipInfo(f"image_{index}.{suffix}"), picture)
    return file.getvalue()
