"""A stranger's picture, opened behind limits: few formats, a size that is looked at before anything is unpacked, and
no library's words in what is refused."""

import struct
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from server.errors import Rejected

FORMATS = ("PNG", "WEBP", "JPEG")
MOST_PIXELS = 2 * 16_777_216
"""Twice what NAI's own page reads."""


MOST_TEXTS = 1000
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")


@contextmanager
def open_image(data: bytes, field: str, most: int = MOST_PIXELS) -> Generator[Image.Image]:
    """A picture's first frame, unpacked.

    Args:
        field: what the picture is called in a refusal.
        most: pixels that it may have.

    Raises:
        Rejected: it is no PNG, WebP or JPEG that can be read to its end, or has more pixels or MOST_TEXTS.
    """
    if sum(data.count(kind) for kind in TEXT_CHUNKS) > MOST_TEXTS:
        raise Rejected(field, f"more than {MOST_TEXTS} texts")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of broken EXIF, which then reads as none
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(BytesIO(data), formats=FORMATS) as picture:
                if picture.width * picture.height > most:
                    raise Rejected(field, f"{picture.width} x {picture.height} is more than {most} pixels")
                picture.load()
                yield picture
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise Rejected(field, f"more than {MOST_PIXELS} pixels") from None
        except UnidentifiedImageError:
            raise Rejected(field, "not a PNG, WebP or JPEG picture") from None
        except (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error):
            raise Rejected(field, "a broken or unusual picture; it could not be read to its end") from None
