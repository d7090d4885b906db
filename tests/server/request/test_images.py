"""Pictures and masks as clients send them."""

from base64 import b64encode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from server.errors import Rejected
from server.picture.stealth import embed
from server.request.images import decode_base64, read_image, read_mask

RNG = np.random.default_rng(6)
PIXELS = RNG.integers(0, 256, (64, 96, 3), np.uint8)


def sent(image, kind="PNG", **options):
    file = BytesIO()
    image.save(file, kind, **options)
    return b64encode(file.getvalue()).decode()


def read(image, kind="PNG", size=(96, 64), **options):
    found = read_image(sent(image, kind, **options), "image", *size)
    return np.frombuffer(found.rgb, np.uint8).reshape(found.height, found.width, 3)


@pytest.mark.parametrize("before", ["", "data:image/png;base64,", "data:image/svg+xml;base64,", " \n"])
def test_base64_may_have_a_head_and_white_space_and_lack_its_padding(before):
    text = before + b64encode(b"four").decode()[:4] + "\n" + b64encode(b"four").decode()[4:].rstrip("=")
    assert decode_base64(text, "image") == b"four"


@pytest.mark.parametrize(
    "value", ["http://169.254.169.254/", "file:///etc/passwd", "n\u00e4h", "a", "====", 5, None, ["AAAA"]]
)
def test_anything_else_is_refused(value):
    with pytest.raises(Rejected, match=r"image: not (Base64|a text)"):
        decode_base64(value, "image")


def test_a_picture_of_its_size_comes_through_untouched():
    assert (read(Image.fromarray(PIXELS)) == PIXELS).all()
    assert (read(Image.fromarray(PIXELS), "WEBP", lossless=True) == PIXELS).all()


def test_a_picture_is_stretched_to_the_size_asked_for():
    assert read(Image.new("RGB", (10, 10), "red"), size=(64, 96)).shape == (96, 64, 3)
    assert set(read(Image.new("RGB", (1, 1000), "red"), size=(64, 64)).reshape(-1, 3).mean(axis=0)) == {
        255.0,
        0.0,
    }


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "CMYK", "I;16", "RGBA"])
def test_every_mode_becomes_rgb(mode):
    image = Image.new("L", (96, 64), 255)
    image = Image.fromarray(np.full((64, 96), 65535, np.uint16)) if mode == "I;16" else image.convert(mode)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    assert (read(image, kind) >= 254).all()


def test_it_is_turned_as_its_exif_says():
    image = Image.fromarray(PIXELS)
    exif = image.getexif()
    exif[0x0112] = 6
    assert (read(image, exif=exif, size=(64, 96)) == np.rot90(PIXELS, -1)).all()


def test_broken_exif_is_no_reason_to_refuse():
    image, rng = Image.fromarray(PIXELS), np.random.default_rng(4)
    exif = image.getexif()
    exif[0x0112], exif[0x010E], exif[0x8298] = 6, "a", "b"
    file = BytesIO()
    image.save(file, "JPEG", exif=exif, quality=95)
    plain, start = file.getvalue(), file.getvalue().index(b"Exif")
    for _ in range(300):
        data = bytearray(plain)
        for place in rng.integers(start + 6, start + 54, 3):
            data[place] = rng.integers(256)
        found = read_image(b64encode(data).decode(), "image", 64, 96)
        assert len(found.rgb) == 64 * 96 * 3


def test_what_can_be_seen_through_lies_on_white_and_hidden_text_is_dropped():
    clear = Image.new("RGBA", (96, 64), (255, 0, 0, 0))
    assert (read(clear) == 255).all()
    stealthy = embed(np.tile(PIXELS, (4, 4, 1)), "{}")
    assert stealthy is not None
    assert (read(Image.fromarray(stealthy), size=(384, 256)) == np.tile(PIXELS, (4, 4, 1))).all()


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "ICO"])
def test_other_formats_are_refused(kind):
    with pytest.raises(Rejected, match="image: not a PNG, WebP or JPEG"):
        read(Image.fromarray(PIXELS), kind)


def test_of_an_animation_the_first_frame_counts():
    frames = [Image.new("RGB", (96, 64), colour) for colour in ("red", "blue")]
    assert (read(frames[0], save_all=True, append_images=frames[1:]) == (255, 0, 0)).all()


@pytest.mark.parametrize("share", [0.3, 0.7, 0.98])
def test_half_a_picture_is_refused(share):
    file = BytesIO()
    Image.fromarray(np.tile(PIXELS, (4, 4, 1))).save(file, "PNG")
    data = file.getvalue()[: int(share * len(file.getvalue()))]
    with pytest.raises(Rejected, match="image: "):
        read_image(b64encode(data).decode(), "image", 96, 64)


# masks

PLACES = np.zeros((8, 12), bool)
PLACES[2:5, 3:9] = True
WANTED = (PLACES * np.uint8(255)).tobytes()
FULL = Image.fromarray(np.kron(PLACES, np.ones((8, 8), np.uint8)) * np.uint8(255))
EIGHTH = Image.fromarray(PLACES * np.uint8(255))


def alpha_of(image):
    clear = Image.new("RGBA", image.size, (255, 255, 255, 0))
    clear.putalpha(image)
    return clear


@pytest.mark.parametrize(
    "image",
    [
        FULL,
        EIGHTH,
        FULL.convert("RGB"),
        FULL.convert("RGBA"),
        FULL.convert("1"),
        alpha_of(EIGHTH),
        alpha_of(FULL),
        Image.fromarray(40 + np.asarray(FULL) // 2),
        FULL.resize((192, 128), Image.Resampling.NEAREST),
    ],
    ids=["full", "eighth", "rgb", "rgba", "one bit", "alpha eighth", "alpha", "greys", "of a larger picture"],
)
def test_every_form_of_a_mask_says_the_same(image):
    assert read_mask(sent(image), "mask", 96, 64) == WANTED


def test_a_mask_of_anything_white_is_one_and_of_nothing_is_refused():
    assert read_mask(sent(Image.new("L", (1, 1), 255)), "mask", 96, 64) == b"\xff" * 96
    with pytest.raises(Rejected, match="mask: black everywhere"):
        read_mask(sent(Image.new("L", (96, 64), 100)), "mask", 96, 64)


def test_an_eighth_that_was_rounded_up_to_64_pixels_is_resized():
    rounded = Image.new("L", (16, 8))  # for a picture of 96 pixels, ceil(96 / 64) * 8 places
    rounded.paste(255, (8, 0, 16, 8))
    found = np.frombuffer(read_mask(sent(rounded), "mask", 96, 64), np.uint8).reshape(8, 12)
    assert (found[:, 6:] == 255).all()
    assert (found[:, :6] == 0).all()
