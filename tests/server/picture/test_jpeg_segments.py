"""Reading JPEG files that other programs wrote, and refusing those that take minutes."""

from io import BytesIO

import numpy as np
import pytest
from image_files import make_segment
from PIL import Image

from server.errors import Rejected
from server.picture.jpeg_segments import MOST_SEGMENTS, read_jpeg
from server.request.images import open_image

PIXELS = np.random.default_rng(5).integers(0, 256, (32, 48, 3), np.uint8)


def encode(**options):
    file = BytesIO()
    Image.fromarray(PIXELS).save(file, "JPEG", **options)
    return file.getvalue()


PLAIN = encode()


def insert(segments, data=PLAIN):
    """The file with these bytes after its first marker."""
    return data[:2] + segments + data[2:]


def read_pixels(data):
    return np.asarray(open_image(data, "image").pixels)


SEGMENTS = {
    "fill bytes": b"\xff" * 1_000_000,
    "an XMP of 60 kB": make_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + bytes(60_000)),
    "a wide EXIF": make_segment(0xE1, b"Exif\0\0" + bytes(60_000)),
    "two hundred EXIF segments": make_segment(0xE1, b"Exif\0\0" + bytes(60_000)) * 200,
    "an index of more images": make_segment(0xE2, b"MPF\0" + bytes(40)),
    "a broken profile": make_segment(0xE2, b"ICC_PROFILE\0\1\2x"),
    "Photoshop's resources": make_segment(0xED, b"Photoshop 3.0\0008BIM\4"),
    "a scan inside": make_segment(0xE1, b"\xff\xda" * 3000),
}


@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS.keys())
def test_segments_around_the_pixels_change_nothing(segments):
    assert (read_pixels(insert(segments)) == read_pixels(PLAIN)).all()


def test_comments_exif_and_a_profile_in_pieces_are_found():
    pieces = make_segment(0xE2, b"ICC_PROFILE\0\2\2world") + make_segment(0xE2, b"ICC_PROFILE\0\1\2hello ")
    parts = read_jpeg(
        insert(pieces + make_segment(0xFE, b'{"seed": 7}\0') + make_segment(0xE1, b"Exif\0\0MM"))
    )
    assert (parts.profile, parts.texts, parts.exif) == (
        b"hello world",
        {"Comment": '{"seed": 7}'},
        b"Exif\0\0MM",
    )
    incomplete = make_segment(0xE2, b"ICC_PROFILE\0\2\2world")
    assert read_jpeg(insert(incomplete)).profile == b""


def repeat_last_scan(data, count):
    start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + data[start:end] * count + data[end:]


def set_size(data, width, height):
    """The file with another size in its header."""
    start = data.index(b"\xff\xc2") + 5
    return data[:start] + height.to_bytes(2) + width.to_bytes(2) + data[start + 4 :]


def test_as_many_scans_as_encoders_write_are_read():
    progressive = encode(progressive=True)
    assert (read_pixels(progressive) == read_pixels(PLAIN)).all()
    assert read_pixels(repeat_last_scan(progressive, 50)).shape == PIXELS.shape


@pytest.mark.parametrize(
    ("size", "count", "most"), [((5792, 5792), 300, 32), ((48, 32), 1100, 1024), ((2000, 1500), 400, 357)]
)
def test_scans_are_bounded_by_the_size(size, count, most):
    data = repeat_last_scan(set_size(encode(progressive=True), *size), count)
    with pytest.raises(Rejected, match=f"a JPEG of more than {most} scans at {size[0] * size[1]} pixels"):
        open_image(data, "image")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (insert(make_segment(0xFE, b"a") * MOST_SEGMENTS), "segments"),
        (PLAIN[: PLAIN.index(b"\xff\xda")], "broken"),
        (PLAIN[:30], "broken"),
        (b"\xff\xd8\xff\xd9", "no pixels"),
        (b"\xff\xd8\xff\xfe\0\1", "broken"),
        (PLAIN[: len(PLAIN) // 2], "broken"),
    ],
)
def test_damaged_and_endless_files_are_refused(data, reason):
    with pytest.raises(Rejected, match=f"image: a.*{reason}"):
        open_image(data, "image")
