"""Decode users' images and masks, from Base64 to what a job uses.

The files are untrusted: few formats are allowed, the size is checked before anything is decompressed, and errors never
quote a library. As on NAI's page, images are rotated as their EXIF says, composited over white where transparent, and
stretched to the requested size. Masks may have any size and be white on black, white on transparent, or gray.
"""

import binascii
import re
import struct
import warnings
from base64 import b64decode
from collections.abc import Generator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from pipelines.job import RgbImage
from server.errors import Rejected

FORMATS = ("PNG", "WEBP", "JPEG")
MAX_PIXELS = 2 * 16_777_216
"""Twice what NAI's page reads."""
MAX_TEXT_CHUNKS = 1000
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
DATA_URI = re.compile(r"data:image/[\w.+-]{1,40};base64,")
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transpose that makes an image upright, by its EXIF orientation."""
MIN_STEALTH_ALPHA = 254
"""The lowest alpha of an image whose alpha channel only hides text."""


def decode_base64(value: object, field: str) -> bytes:
    """Decode a Base64 string; a data URI's prefix, white space and missing padding are allowed.

    Raises:
        Rejected: the value is not such a string.
    """
    if not isinstance(value, str):
        raise Rejected(field, "not a string; send an image in Base64")
    prefix = DATA_URI.match(value)
    text = "".join(value[prefix.end() if prefix else 0 :].split())
    try:
        return b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Rejected(field, "not Base64; send an image in Base64, URLs are not fetched") from None


@contextmanager
def open_image(data: bytes, field: str, max_pixels: int = MAX_PIXELS) -> Generator[Image.Image]:
    """Open an image file and decode its first frame; `field` is the name of the image in error messages.

    Raises:
        Rejected: the file is not a PNG, WebP or JPEG, is broken or incomplete, or has more than `max_pixels` pixels
            or MAX_TEXT_CHUNKS text chunks.
    """
    if sum(data.count(kind) for kind in TEXT_CHUNKS) > MAX_TEXT_CHUNKS:
        raise Rejected(field, f"more than {MAX_TEXT_CHUNKS} text chunks")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about broken EXIF, which then counts as none
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise Rejected(field, f"{image.width} x {image.height} is more than {max_pixels} pixels")
                image.load()
                yield image
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise Rejected(field, f"more than {MAX_PIXELS} pixels") from None
        except UnidentifiedImageError:
            raise Rejected(field, "not a PNG, WebP or JPEG image") from None
        except (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error):
            raise Rejected(field, "a broken or unusual image; it could not be read to its end") from None


def read_image(value: object, field: str, width: int, height: int) -> RgbImage:
    """Decode a request's image and stretch it to the job's size.

    Raises:
        Rejected: the image cannot be read.
    """
    with open_image(decode_base64(value, field), field) as image:
        rgb = to_upright_rgb(image)
    if rgb.size != (width, height):
        rgb = rgb.resize((width, height), Image.Resampling.LANCZOS)
    return RgbImage(width, height, rgb.tobytes())


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Convert an open image to RGB, rotated as its EXIF says and composited over white where it is transparent."""
    try:
        transpose = TRANSPOSES.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001  # Pillow does not document what broken EXIF can raise
        transpose = None
    rgb = _to_opaque_rgb(image)
    return rgb if transpose is None else rgb.transpose(transpose)


def read_mask(value: object, field: str, width: int, height: int, soft: bool = False) -> bytes:
    """Decode a request's mask to the latent grid, a byte for each latent, row by row: 255 where it may change.

    That is where the mask's luma is above 127. With `soft`, values between black and white are kept. The width and
    height are the job's, in pixels.

    Raises:
        Rejected: the mask cannot be read or is black everywhere.
    """
    with open_image(decode_base64(value, field), field) as image:
        rgba = _to_8_bit(image).convert("RGBA")
        black = Image.new("RGBA", rgba.size, "black")
        luma = np.asarray(Image.alpha_composite(black, rgba).convert("L"))
    if soft:
        mask = np.asarray(Image.fromarray(luma).resize((width // 8, height // 8), Image.Resampling.BOX))
    else:
        rows, columns = _nearest(luma.shape[0], height // 8), _nearest(luma.shape[1], width // 8)
        mask = (luma[rows][:, columns] > 127) * np.uint8(255)
    if not mask.any():
        raise Rejected(field, "black everywhere; the part to change must be white")
    return mask.tobytes()


def _nearest(old: int, new: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """For each of `new` positions along a side, the index among `old` ones that its center falls on."""
    return ((np.arange(new) + 0.5) * old / new).astype(np.int64)


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Convert an image of 16 bits a channel to 8 bits; return any other unchanged."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).clip(0, 65535).astype(np.uint32)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _to_opaque_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB, composited over white where it is transparent."""
    image = _to_8_bit(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    if np.asarray(rgba.getchannel("A")).min() >= MIN_STEALTH_ALPHA:
        return rgba.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
