"""A picture and its metadata as a PNG: text chunks in NAI's order, the same again in the alpha."""

import logging
from collections.abc import Mapping
from io import BytesIO

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from server.metadata import alpha_text
from server.stealth import Rgb, embed, opaque

log = logging.getLogger("naiad")


def encode(rgb: Rgb, fields: Mapping[str, str]) -> bytes:
    """An 8-bit RGBA PNG; a field is a tEXt chunk, or iTXt where Latin-1 cannot hold it."""
    rgba = embed(rgb, alpha_text(fields))
    if rgba is None:
        log.warning("a %dx%d picture is too small for its metadata in alpha", rgb.shape[1], rgb.shape[0])
        rgba = opaque(rgb)
    info = PngInfo()
    for key, value in fields.items():
        info.add_text(key, value)
    file = BytesIO()
    Image.fromarray(rgba).save(file, "PNG", pnginfo=info, compress_level=1)
    return file.getvalue()
