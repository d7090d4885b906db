"""Decode users' images and masks, from Base64 to what a job uses.

The files are untrusted: few formats are allowed, the size is checked before anything is decompressed, and errors never
quote a library. As on NAI's page, images are converted to sRGB, rotated as their EXIF says, composited over white where
transparent, and stretched to the requested size. Masks may have any size and be white on black, white on transparent,
or gray.
"""

import binascii
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pipelines.job import RgbImage
from server.errors import Rejected
from server.picture.color import change_mode, convert_to_srgb
from server.picture.exif import Exif, read_exif
from server.picture.jpeg_segments import read_jpeg
from server.picture.parts import FileParts, UnreadableFile
from server.picture.png import SIGNATURE
from server.picture.png_chunks import read_png

MAX_PIXELS = 2 * 16_777_216
"""Twice what NAI's page reads."""
JPEG_START = b"\xff\xd8\xff"
LONGEST_HEAD = 1024
HEAD = re.compile(r"(?:data:)?[\w.+*-]*(?:/[\w.+*-]+)?(?:;[^;]*)*", re.ASCII | re.IGNORECASE)
"""What stands before the last comma of a data URI, without white space. Clients leave out each of its parts."""
PIECE = 4 << 20
"""Characters that are decoded at once, a multiple of 4; these take 10 milliseconds."""
URL_SAFE = bytes.maketrans(b"-_", b"+/")
WHITE_SPACE = b" \t\r\n\v\f"
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


@dataclass(frozen=True, slots=True, eq=False)
class OpenedImage:
    """A decoded image file: its pixels as they are stored, and what the file says about them."""

    format: str
    pixels: Image.Image = field(repr=False)
    texts: Mapping[str, str]
    exif: Exif
    profile: bytes = field(repr=False)


def is_image_file(data: bytes) -> bool:
    """Return whether a file begins like one of the formats that are read."""
    return data.startswith((SIGNATURE, JPEG_START)) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def decode_file(value: object, field: str) -> bytes:
    """Return the file that a field holds: the bytes of a part of a form, or a Base64 string of either alphabet.

    A data URI's head, white space and missing padding are allowed.

    Raises:
        Rejected: the value is neither.
    """
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise Rejected(field, "not a string; send an image in Base64")
    value = value.strip()
    head, comma, _ = value[:LONGEST_HEAD].rpartition(",")
    has_head = bool(comma) and HEAD.fullmatch("".join(head.split())) is not None
    try:
        text = (value[len(head) + 1 :] if has_head else value).encode("ascii")
        text = b"".join(piece.translate(URL_SAFE, WHITE_SPACE) for piece in _split(text)).rstrip(b"=")
        if not text or b"=" in text:
            raise ValueError
        text += b"=" * (-len(text) % 4)
        return b"".join(binascii.a2b_base64(piece, strict_mode=True) for piece in _split(text))
    except ValueError:
        raise Rejected(field, "not Base64; send an image in Base64, URLs are not fetched") from None


def _split(text: bytes) -> Iterator[bytes]:
    """Yield a text in pieces; other threads can run between them."""
    return (text[start : start + PIECE] for start in range(0, len(text), PIECE))


def open_image(data: bytes, field: str, max_pixels: int = MAX_PIXELS) -> OpenedImage:
    """Decode the first frame of an image file; `field` is the name of the image in error messages.

    Raises:
        Rejected: the file is not a PNG, WebP or JPEG, is broken or incomplete, takes too much to decode, or has more
            than `max_pixels` pixels.
    """
    try:
        return _open(data, field, max_pixels)
    except UnreadableFile as error:
        raise Rejected(field, str(error)) from None
    except Image.DecompressionBombError:
        raise Rejected(field, f"more than {MAX_PIXELS} pixels") from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, struct.error):
        raise Rejected(field, "a broken or unusual image; it could not be read to its end") from None


def _open(data: bytes, field: str, max_pixels: int) -> OpenedImage:
    if data.startswith(SIGNATURE):
        parts, decoder = read_png(data), PngImageFile
    elif data.startswith(JPEG_START):
        parts, decoder = read_jpeg(data), JpegImageFile
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        parts, decoder = FileParts(data), WebPImageFile
    else:
        raise UnreadableFile("not a PNG, WebP or JPEG image")
    image = decoder(BytesIO(parts.pixels))
    if image.width * image.height > max_pixels:
        raise Rejected(field, f"{image.width} x {image.height} is more than {max_pixels} pixels")
    image.load()
    # a WebP is not split: Pillow copies these two parts as they are
    exif, profile = (
        parts.exif or image.info.get("exif", b""),
        parts.profile or image.info.get("icc_profile", b""),
    )
    return OpenedImage(str(image.format), image, parts.texts, read_exif(exif), profile)


def read_image(value: object, field: str, width: int, height: int) -> RgbImage:
    """Decode a request's image and stretch it to the job's size.

    Raises:
        Rejected: the image cannot be read.
    """
    rgb = to_upright_rgb(open_image(decode_file(value, field), field))
    if rgb.size != (width, height):
        rgb = rgb.resize((width, height), Image.Resampling.LANCZOS)
    return RgbImage(width, height, rgb.tobytes())


def to_upright_rgb(image: OpenedImage, background: str = "white") -> Image.Image:
    """Convert an image to RGB in sRGB, rotated as its EXIF says and composited where it is transparent."""
    rgb = convert_to_srgb(to_plain_mode(image.pixels), image.profile)
    if rgb.mode == "RGBA":
        is_visible = np.asarray(rgb.getchannel("A")).min() < MIN_STEALTH_ALPHA
        rgb = Image.alpha_composite(Image.new("RGBA", rgb.size, background), rgb) if is_visible else rgb
        rgb = rgb.convert("RGB")
    transpose = TRANSPOSES.get(image.exif.orientation)
    return rgb if transpose is None else rgb.transpose(transpose)


def read_mask(value: object, field: str, width: int, height: int, soft: bool = False) -> bytes:
    """Decode a request's mask to the latent grid, a byte for each latent, row by row: 255 where it may change.

    That is where the mask's luma is above 127. With `soft`, values between black and white are kept. The width and
    height are the job's, in pixels.

    Raises:
        Rejected: the mask cannot be read or is black everywhere.
    """
    image = open_image(decode_file(value, field), field)
    luma = np.asarray(to_upright_rgb(image, "black").convert("L"))
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


def to_plain_mode(image: Image.Image) -> Image.Image:
    """Convert a decoded image to mode L, LA, RGB, RGBA or CMYK, with alpha only where there is transparency."""
    if image.mode.startswith("I"):
        return _to_8_bit(image)
    if image.mode in ("1", "L"):
        return change_mode(image, "LA" if image.has_transparency_data else "L")
    if image.mode in ("P", "PA", "RGB"):
        return change_mode(image, "RGBA" if image.has_transparency_data else "RGB")
    return image


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Convert gray of 16 bits to 8 bits; the transparent gray is compared before that."""
    values = np.asarray(image).clip(0, 65535).astype(np.uint32)
    gray = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray.putalpha(Image.fromarray((values != transparent) * np.uint8(255)))
    return gray
