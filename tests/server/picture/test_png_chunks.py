"""Reading PNG files that other programs wrote, or damaged."""

import struct
import zlib

import pytest
from image_files import GRAY, PALETTE, PIXEL, make_chunk, make_packed, make_png, make_text

from server.errors import Rejected
from server.picture.parts import LARGEST_PROFILE, LONGEST_TEXT, MOST_PARTS, MOST_TEXTS
from server.picture.png_chunks import read_png
from server.request.images import open_image, to_upright_rgb

WHITE = (255, 255, 255)
SENT = tuple(PIXEL)


def read_pixel(data):
    return to_upright_rgb(open_image(data, "image")).getpixel((0, 0))


@pytest.mark.parametrize(
    "kind", [b"tEXt", b"iCCP", b"gAMA", b"cHRM", b"pHYs", b"eXIf", b"acTL", b"fcTL", b"abCd"]
)
@pytest.mark.parametrize("content", [b"", b"abc", b"a\0\7xx"], ids=["empty", "short", "strange"])
@pytest.mark.parametrize("is_sound", [True, False], ids=["", "checksum"])
def test_no_ancillary_chunk_makes_an_image_unreadable(kind, content, is_sound):
    chunk = make_chunk(kind, content, is_sound)
    assert read_pixel(make_png(chunk)) == SENT
    assert read_pixel(make_png(after=chunk)) == SENT


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"IDAT"])
def test_a_wrong_checksum_among_the_pixels_is_named(kind):
    data = bytearray(make_png(make_chunk(b"PLTE", b"\1\2\3"), color_type=PALETTE, pixel=b"\0"))
    start = data.index(kind)
    length = int.from_bytes(data[start - 4 : start])
    data[start + 4 + length] ^= 1
    with pytest.raises(
        Rejected, match=f"image: a damaged PNG: the checksum of its {kind.decode()} chunk is wrong"
    ):
        open_image(bytes(data), "image")


def test_an_image_without_its_end_is_read_and_one_cut_in_its_pixels_is_refused():
    assert read_pixel(make_png()[:-12]) == SENT
    assert read_pixel(make_png()[:-1]) == SENT
    with pytest.raises(Rejected, match="broken PNG"):
        read_pixel(make_png()[:-20])


def test_the_texts_of_all_kinds_of_chunks_are_read_before_and_after_the_pixels():
    packed = zlib.compress("naïve".encode("latin-1"))
    chunks = (
        make_text(b"utf-8", "猫耳".encode()),
        make_text(b"latin-1", "café, Ångström".encode("latin-1")),
        make_chunk(b"zTXt", b"zTXt\0\0" + packed),
        make_chunk(b"iTXt", b"iTXt\0\0\0de\0x\0" + "♥".encode()),
        make_chunk(b"iTXt", b"packed iTXt\0\1\0\0\0" + zlib.compress("♥".encode())),
        make_chunk(b"tEXt", b"damaged\0x", is_sound=False),
        make_chunk(b"tEXt", b"\0no keyword"),
        make_chunk(b"tEXt", b"no text"),
    )
    expected = {
        "utf-8": "猫耳",
        "latin-1": "café, Ångström",
        "zTXt": "naïve",
        "iTXt": "♥",
        "packed iTXt": "♥",
        "no text": "",
    }
    assert read_png(make_png(b"".join(chunks))).texts == expected
    assert read_png(make_png(after=b"".join(chunks))).texts == expected


LARGE = {
    "profile": make_packed(b"iCCP", b"a\0\0", LARGEST_PROFILE + 1),
    "zTXt": make_packed(b"zTXt", b"a\0\0", LONGEST_TEXT + 1),
    "iTXt": make_packed(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0", LONGEST_TEXT + 1),
    "tEXt": make_text(b"a", bytes(LONGEST_TEXT + 1)),
    "broken": make_chunk(b"zTXt", b"a\0\0no zlib stream"),
}


@pytest.mark.parametrize("chunk", LARGE.values(), ids=LARGE.keys())
def test_what_is_too_long_is_left_out_and_the_rest_is_read(chunk):
    parts = read_png(make_png(chunk + make_text(b"Title", b"kept")))
    assert (parts.texts, parts.profile) == ({"Title": "kept"}, b"")
    assert read_pixel(make_png(chunk)) == SENT


def test_a_profile_of_more_than_a_mebibyte_is_read():
    assert len(read_png(make_png(make_packed(b"iCCP", b"a\0\0", 1_200_000))).profile) == 1_200_000


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        (make_packed(b"iCCP", b"a\0\0", 200_000_000), "unpack to more than 67108864 bytes"),
        (make_packed(b"zTXt", b"a\0\0", LONGEST_TEXT) * 65, "unpack to more than 67108864 bytes"),
        (make_text(b"a", b"x") * (MOST_TEXTS + 1), f"more than {MOST_TEXTS} text chunks"),
        (make_chunk(b"abCd", b"") * MOST_PARTS, f"more than {MOST_PARTS} chunks"),
    ],
    ids=["a bomb", "many bombs", "texts", "chunks"],
)
def test_bombs_are_refused(chunks, reason):
    with pytest.raises(Rejected, match=reason):
        open_image(make_png(chunks), "image")


def test_the_word_of_a_chunk_among_the_pixels_does_not_count_as_one():
    assert read_pixel(make_png(make_chunk(b"abCd", b"tEXt" * (MOST_TEXTS + 1)))) == SENT


@pytest.mark.parametrize(
    ("color_type", "depth", "pixel", "transparent", "expected"),
    [
        (GRAY, 16, b"\x75\x30", (30_000,), WHITE),
        (GRAY, 16, b"\x75\x31", (30_000,), (117, 117, 117)),
        (2, 16, b"\xff\xff\x01\x2c\x00\x14", (65_535, 300, 20), WHITE),
        (2, 16, b"\xff\xff\x01\x2c\x00\x14", (65_535, 900, 20), (255, 1, 0)),
        (2, 8, PIXEL, tuple(PIXEL), WHITE),
        (GRAY, 8, b"\x50", (0x50,), WHITE),
        (GRAY, 4, b"\x50", (5,), WHITE),
        (GRAY, 2, b"\x40", (1,), WHITE),
        (GRAY, 2, b"\x40", (2,), (85, 85, 85)),
        (GRAY, 1, b"\x00", (0,), WHITE),
        (GRAY, 1, b"\x00", (1,), (0, 0, 0)),
    ],
)
def test_a_transparent_color_of_every_depth_is_found(color_type, depth, pixel, transparent, expected):
    chunk = make_chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    assert read_pixel(make_png(chunk, pixel=pixel, color_type=color_type, depth=depth)) == expected


def test_exif_in_hexadecimal_is_found():
    text = "\nexif\n       4\n4d4d\n002a\n"
    assert read_png(make_png(make_text(b"Raw profile type exif", text.encode()))).exif == b"MM\0*"
    assert read_png(make_png(make_text(b"Raw profile type exif", b"\n\n\nno hex"))).exif == b""


P3 = make_chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))
GAMMA = make_chunk(b"gAMA", struct.pack(">I", 45_455))


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        (make_chunk(b"cICP", b"\x0c\x0d\0\1"), (216, 69, 50)),
        (P3 + GAMMA, (216, 69, 50)),
        (P3, (216, 69, 50)),
        (GAMMA, SENT),
        (P3 + make_chunk(b"sRGB", b"\0"), SENT),
        (P3 + make_chunk(b"cICP", b"\x01\x0d\0\1"), SENT),
        (make_chunk(b"gAMA", struct.pack(">I", 100_000)), (229, 151, 132)),
        (make_chunk(b"cICP", b"\x09\x10\0\1"), SENT),
        (make_chunk(b"cHRM", bytes(32)), SENT),
    ],
    ids=["cICP", "gAMA cHRM", "cHRM", "gAMA", "sRGB", "sRGB cICP", "linear", "PQ", "zeros"],
)
def test_colors_described_without_a_profile_are_converted_as_browsers_do(chunks, expected):
    assert read_pixel(make_png(chunks)) == pytest.approx(expected, abs=1)


def test_gray_with_gamma_is_converted():
    chunk = make_chunk(b"gAMA", struct.pack(">I", 100_000))
    assert read_pixel(make_png(chunk, pixel=b"\x80", color_type=GRAY)) == (188, 188, 188)
