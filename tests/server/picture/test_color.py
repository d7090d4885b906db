"""Conversion of pixels with a color profile to sRGB."""

import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms

from server.picture.color import convert_to_srgb
from server.picture.icc import PRIMARIES, SRGB_CURVE, SRGB_PRIMARIES, build_profile
from server.picture.parts import LARGEST_PROFILE

RNG = np.random.default_rng(2)
PIXELS = RNG.integers(0, 256, (16, 24, 3), np.uint8)
P3 = build_profile(PRIMARIES[12], SRGB_CURVE)
ADOBE = build_profile((0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06), (2.19921875,))
LINEAR_GRAY = build_profile((), (1.0,), is_gray=True)
SRGBS = {
    "ours": build_profile(SRGB_PRIMARIES, SRGB_CURVE),
    "LittleCMS's": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
}


def make_cmyk():
    """A profile of a printer whose colors are Lab (100 - 25 * inks, 0, 0)."""
    corners = [max(0, 255 - 64 * bin(index).count("1")) for index in range(16)]
    table = struct.pack(
        ">4sIBBBB9i", b"mft1", 0, 4, 3, 2, 0, *(65536 * value for value in (1, 0, 0, 0, 1, 0, 0, 0, 1))
    )
    table += (
        bytes(range(256)) * 4
        + b"".join(bytes([light, 128, 128]) for light in corners)
        + bytes(range(256)) * 3
    )
    tags = {b"A2B0": table, b"wtpt": b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)}
    offset, body, rows = 132 + 12 * len(tags), b"", struct.pack(">I", len(tags))
    for name, content in tags.items():
        rows += struct.pack(">4sII", name, offset + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    header = struct.pack(
        ">I4xI4s4s4s12x4s", offset + len(body), 0x02400000, b"prtr", b"CMYK", b"Lab ", b"acsp"
    )
    return (header.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)).ljust(128, b"\0") + rows + body


def convert(color, mode, profile):
    return convert_to_srgb(Image.new(mode, (1, 1), color), profile).getpixel((0, 0))


@pytest.mark.parametrize(
    ("color", "mode", "profile", "expected"),
    [
        ((200, 80, 60), "RGB", P3, (216, 69, 50)),
        ((200, 80, 60), "RGB", ADOBE, (230, 79, 56)),
        ((200, 80, 60, 9), "RGBA", P3, (216, 69, 50, 9)),
        (128, "L", LINEAR_GRAY, (188, 188, 188)),
        ((128, 9), "LA", LINEAR_GRAY, (188, 188, 188, 9)),
        ((0, 0, 0, 0), "CMYK", make_cmyk(), (255, 255, 255)),
        ((255, 255, 0, 0), "CMYK", make_cmyk(), (119, 119, 119)),
    ],
)
def test_colors_are_converted_and_alpha_is_kept(color, mode, profile, expected):
    assert convert(color, mode, profile) == pytest.approx(expected, abs=2)


@pytest.mark.parametrize("profile", SRGBS.values(), ids=SRGBS.keys())
def test_srgb_changes_no_pixel(profile):
    image = Image.fromarray(PIXELS)
    assert (np.asarray(convert_to_srgb(image, profile)) == PIXELS).all()


@pytest.mark.parametrize(
    "profile",
    [
        P3 + bytes(LARGEST_PROFILE),
        b"",
        b"x" * 300,
        P3[:200],
        P3[:16] + b"CMYK" + P3[20:],
        P3[:12] + b"link" + P3[16:],
        LINEAR_GRAY,
        make_cmyk(),
    ],
    ids=["large", "none", "garbage", "cut", "of another space", "a link", "gray", "CMYK"],
)
def test_a_profile_that_does_not_fit_is_ignored(profile):
    assert convert((200, 80, 60), "RGB", profile) == (200, 80, 60)


def test_a_damaged_profile_is_never_an_error():
    image = Image.fromarray(PIXELS)
    for _ in range(300):
        damaged = bytearray(P3)
        for position in RNG.integers(0, len(P3), 5):
            damaged[position] = RNG.integers(256)
        assert convert_to_srgb(image, bytes(damaged)).size == image.size


def test_our_profiles_are_read_by_littlecms():
    for profile in (P3, ADOBE, LINEAR_GRAY):
        assert ImageCms.getDefaultIntent(ImageCms.ImageCmsProfile(BytesIO(profile))) == 0


@pytest.mark.parametrize("curve", [(0.0,), (1e6,)])
def test_a_curve_that_cannot_be_written_gives_no_profile(curve):
    assert build_profile(SRGB_PRIMARIES, curve) == b""
    assert build_profile((0.3, 0.0, *SRGB_PRIMARIES[2:]), SRGB_CURVE) == b""
