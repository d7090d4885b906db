"""Image files built piece by piece: sound ones, damaged ones and those of other programs."""

import struct
import zlib
from base64 import b64encode
from io import BytesIO

import numpy as np
from PIL import Image

from server.picture.png import SIGNATURE
from server.picture.stealth import add_alpha, hide

RGB, GRAY, PALETTE = 2, 0, 3
PIXEL = b"\xc8\x50\x3c"


def make_chunk(kind, content, is_sound=True):
    """A PNG chunk, with a wrong checksum if it is not to be sound."""
    checksum = zlib.crc32(kind + content) ^ (not is_sound)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def make_png(before=b"", after=b"", pixel=PIXEL, color_type=RGB, depth=8):
    """A PNG of one pixel, with other chunks before and after it."""
    header = make_chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, depth, color_type, 0, 0, 0))
    image_data = make_chunk(b"IDAT", zlib.compress(b"\0" + pixel))
    return SIGNATURE + header + before + image_data + after + make_chunk(b"IEND", b"")


def make_text(keyword, text):
    return make_chunk(b"tEXt", keyword + b"\0" + text)


def make_packed(kind, prefix, size):
    """A chunk with `size` zeros, packed."""
    return make_chunk(kind, prefix + zlib.compress(bytes(size), 9))


def make_segment(marker, content):
    """A JPEG segment."""
    return b"\xff%c" % marker + (len(content) + 2).to_bytes(2) + content


def make_exif(order, user_comment, orientation=1, description=b""):
    """A TIFF file with these tags; `order` is "<" or ">"."""
    start = 8 + 2 + 3 * 12 + 4
    inner = start + len(description) + len(description) % 2
    value = inner + 2 + 12 + 4
    padding = b"\0" * (len(description) % 2)
    main = struct.pack(
        f"{order}HHHIHHHHIIHHII", 3, 0x0112, 3, 1, orientation, 0, 0x010E, 2, len(description), start, 0x8769, 4, 1, inner
    )  # fmt: skip
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8)
    tag = struct.pack(f"{order}HHHIII", 1, 0x9286, 7, len(user_comment), value, 0)
    return head + main + bytes(4) + description + padding + tag + user_comment


def encode_base64(pixels, **options):
    """Pixels as a PNG in Base64; `options` are Pillow's."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return b64encode(file.getvalue()).decode()


def embed(rgb, text=None):
    """Pixels with a text in their alpha, which is opaque without a text; None if they are too few for it."""
    height, width = rgb.shape[:2]
    columns = np.empty((height, 0), np.uint8) if text is None else hide(text, height, width)
    return None if columns is None else add_alpha(rgb, columns)
