"""Images and masks as clients send them."""

import tracemalloc
from base64 import b64encode, urlsafe_b64encode
from io import BytesIO

import numpy as np
import pytest
from image_files import embed
from PIL import Image

from server.errors import Rejected
from server.picture.icc import PRIMARIES, SRGB_CURVE, build_profile
from server.request.images import decode_file, read_image, read_mask

RNG = np.random.default_rng(6)
PIXELS = RNG.integers(0, 256, (64, 96, 3), np.uint8)


def encode(image, kind="PNG", **options):
    file = BytesIO()
    image.save(file, kind, **options)
    return b64encode(file.getvalue()).decode()


def read(image, kind="PNG", size=(96, 64), **options):
    decoded = read_image(encode(image, kind, **options), "image", *size)
    return np.frombuffer(decoded.rgb, np.uint8).reshape(decoded.height, decoded.width, 3)


HEADS = (
    *(
        "",
        " \n",
        "data:image/png;base64,",
        "data:image/svg+xml;base64,",
        "data:;base64,",
        "data:image/*;base64,",
    ),
    *(
        "data:application/octet-stream;base64,",
        "data:image/png;charset=utf-8;base64,",
        "DATA:IMAGE/PNG;BASE64,",
    ),
    *(
        "data:image/png;name=x.png;base64,",
        'data:image/png;name="a, b.png";base64,',
        " data: image/png; base64, ",
    ),
    *(
        "image/png;base64,",
        "data:image/png,",
        "data:base64,",
        "base64,",
        ";base64,",
        "data:,",
        "data:null;base64,",
    ),
)


@pytest.mark.parametrize("head", HEADS)
def test_base64_may_have_any_head_of_a_data_uri_and_white_space_and_no_padding(head):
    text = head + b64encode(b"four").decode()[:4] + "\n" + b64encode(b"four").decode()[4:].rstrip("=")
    assert decode_file(text, "image") == b"four"


@pytest.mark.parametrize("head", ["", "data:;base64,"])
def test_the_url_safe_alphabet_is_read_too(head):
    data = bytes(range(256))
    assert decode_file(head + urlsafe_b64encode(data).decode(), "image") == data
    assert decode_file(head + urlsafe_b64encode(data).decode().rstrip("="), "image") == data


def test_white_space_costs_no_memory():
    text = "A " * 2_000_000
    tracemalloc.start()
    decode_file(text, "image")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * len(text)


@pytest.mark.parametrize(
    "value",
    [
        "http://169.254.169.254/",
        "file:///etc/passwd",
        "http://a.test/b,AAAA",
        "QQ==QQ==",
        "data:;base64,",
        "n\u00e4h",
        "a",
        "====",
        5,
        None,
        ["AAAA"],
    ],
)
def test_values_that_are_not_base64_are_refused(value):
    with pytest.raises(Rejected, match=r"image: not (Base64|a string)"):
        decode_file(value, "image")


def test_an_image_of_the_jobs_size_is_unchanged():
    assert (read(Image.fromarray(PIXELS)) == PIXELS).all()
    assert (read(Image.fromarray(PIXELS), "WEBP", lossless=True) == PIXELS).all()


def test_an_image_is_stretched_to_the_requested_size():
    assert read(Image.new("RGB", (10, 10), "red"), size=(64, 96)).shape == (96, 64, 3)
    assert set(read(Image.new("RGB", (1, 1000), "red"), size=(64, 64)).reshape(-1, 3).mean(axis=0)) == {
        255.0,
        0.0,
    }


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "CMYK", "I;16", "RGBA"])
def test_every_mode_is_converted_to_rgb(mode):
    image = Image.new("L", (96, 64), 255)
    image = Image.fromarray(np.full((64, 96), 65535, np.uint16)) if mode == "I;16" else image.convert(mode)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    assert (read(image, kind) >= 254).all()


def test_an_image_is_rotated_as_its_exif_says():
    image = Image.fromarray(PIXELS)
    exif = image.getexif()
    exif[0x0112] = 6
    assert (read(image, exif=exif, size=(64, 96)) == np.rot90(PIXELS, -1)).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_image_with_a_color_profile_is_converted_to_srgb(kind):
    image = Image.new("RGB", (96, 64), (200, 80, 60))
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    profile = build_profile(PRIMARIES[12], SRGB_CURVE)
    pixel = read(image, kind, icc_profile=profile, **options)[9, 9].tolist()
    assert pixel == pytest.approx([216, 69, 50], abs=3)


def test_an_image_with_broken_exif_is_accepted():
    image, rng = Image.fromarray(PIXELS), np.random.default_rng(4)
    exif = image.getexif()
    exif[0x0112], exif[0x010E], exif[0x8298] = 6, "a", "b"
    file = BytesIO()
    image.save(file, "JPEG", exif=exif, quality=95)
    plain, start = file.getvalue(), file.getvalue().index(b"Exif")
    for _ in range(300):
        data = bytearray(plain)
        for index in rng.integers(start + 6, start + 54, 3):
            data[index] = rng.integers(256)
        decoded = read_image(b64encode(data).decode(), "image", 64, 96)
        assert len(decoded.rgb) == 64 * 96 * 3


def test_transparency_becomes_white_and_alpha_that_hides_text_is_dropped():
    transparent = Image.new("RGBA", (96, 64), (255, 0, 0, 0))
    assert (read(transparent) == 255).all()
    with_text = embed(np.tile(PIXELS, (4, 4, 1)), "{}")
    assert with_text is not None
    assert (read(Image.fromarray(with_text), size=(384, 256)) == np.tile(PIXELS, (4, 4, 1))).all()


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "ICO"])
def test_other_formats_are_refused(kind):
    with pytest.raises(Rejected, match="image: not a PNG, WebP or JPEG"):
        read(Image.fromarray(PIXELS), kind)


def test_the_first_frame_of_an_animation_is_used():
    frames = [Image.new("RGB", (96, 64), color) for color in ("red", "blue")]
    assert (read(frames[0], save_all=True, append_images=frames[1:]) == (255, 0, 0)).all()


@pytest.mark.parametrize("share", [0.3, 0.7, 0.98])
def test_an_incomplete_file_is_refused(share):
    file = BytesIO()
    Image.fromarray(np.tile(PIXELS, (4, 4, 1))).save(file, "PNG")
    data = file.getvalue()[: int(share * len(file.getvalue()))]
    with pytest.raises(Rejected, match="image: "):
        read_image(b64encode(data).decode(), "image", 96, 64)


# masks

LATENT_MASK = np.zeros((8, 12), bool)
LATENT_MASK[2:5, 3:9] = True
EXPECTED = (LATENT_MASK * np.uint8(255)).tobytes()
FULL = Image.fromarray(np.kron(LATENT_MASK, np.ones((8, 8), np.uint8)) * np.uint8(255))
EIGHTH = Image.fromarray(LATENT_MASK * np.uint8(255))


def to_alpha(image):
    transparent = Image.new("RGBA", image.size, (255, 255, 255, 0))
    transparent.putalpha(image)
    return transparent


@pytest.mark.parametrize(
    "image",
    [
        FULL,
        EIGHTH,
        FULL.convert("RGB"),
        FULL.convert("RGBA"),
        FULL.convert("1"),
        to_alpha(EIGHTH),
        to_alpha(FULL),
        Image.fromarray(40 + np.asarray(FULL) // 2),
        FULL.resize((192, 128), Image.Resampling.NEAREST),
    ],
    ids=[
        "full",
        "eighth",
        "rgb",
        "rgba",
        "one bit",
        "alpha eighth",
        "alpha",
        "grays",
        "larger than the image",
    ],
)
def test_every_form_of_a_mask_is_read_the_same(image):
    assert read_mask(encode(image), "mask", 96, 64) == EXPECTED


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_mask_is_rotated_as_its_exif_says(kind):
    turned = FULL.transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6
    options = {"lossless": True} if kind == "WEBP" else {}
    assert read_mask(encode(turned, kind, exif=exif, **options), "mask", 96, 64) == EXPECTED


def test_gray_of_a_mask_is_measured_in_srgb():
    linear = build_profile((), (1.0,), is_gray=True)
    assert (
        read_mask(encode(Image.new("L", (96, 64), 100), icc_profile=linear), "mask", 96, 64) == b"\xff" * 96
    )


def test_a_white_pixel_masks_everything_and_a_dark_mask_is_refused():
    assert read_mask(encode(Image.new("L", (1, 1), 255)), "mask", 96, 64) == b"\xff" * 96
    with pytest.raises(Rejected, match="mask: black everywhere"):
        read_mask(encode(Image.new("L", (96, 64), 100)), "mask", 96, 64)


def test_an_eighth_size_mask_rounded_up_to_64_pixels_is_resized():
    rounded = Image.new("L", (16, 8))  # for an image of 96 pixels, ceil(96 / 64) * 8 mask pixels
    rounded.paste(255, (8, 0, 16, 8))
    mask = np.frombuffer(read_mask(encode(rounded), "mask", 96, 64), np.uint8).reshape(8, 12)
    assert (mask[:, 6:] == 255).all()
    assert (mask[:, :6] == 0).all()
