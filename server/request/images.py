"""The pictures that come with a request: Base64 to the source a job starts from.

Pictures are turned as their EXIF says, laid over white where they are transparent, and stretched to the size asked for,
as NAI's page does with its canvas. Masks come in every form that clients send: of any size, white on black, white on
nothing, grey.
"""

import binascii
import re
from base64 import b64decode

import numpy as np
from PIL import Image

from pipelines.job import RgbImage
from server.errors import Rejected
from server.request.decoding import open_image

Changes = np.ndarray[tuple[int, ...], np.dtype[np.uint8 | np.bool_]]
DATA_URI = re.compile(r"data:image/[\w.+-]{1,40};base64,")
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How a picture is set upright, by EXIF's number for how it lies."""
STEALTH = 254
"""The least alpha of a picture that only hides text there."""
WHITE_ENOUGH = 127
"""The luma above which a mask draws anew."""


def decode_base64(value: object, field: str) -> bytes:
    """The bytes of a Base64 text; a data URI's head and white space are passed over.

    Raises:
        Rejected: it is no such text.
    """
    if not isinstance(value, str):
        raise Rejected(field, "not a text; a picture is sent in Base64")
    head = DATA_URI.match(value)
    text = "".join(value[head.end() if head else 0 :].split())
    try:
        return b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Rejected(field, "not Base64; a picture is sent in it, addresses are not followed") from None


def read_image(value: object, field: str, width: int, height: int) -> RgbImage:
    """A request's picture at the size of the job.

    Raises:
        Rejected: it cannot be read.
    """
    with open_image(decode_base64(value, field), field) as sent:
        rgb = to_upright_rgb(sent)
    if rgb.size != (width, height):
        rgb = rgb.resize((width, height), Image.Resampling.LANCZOS)
    return RgbImage(width, height, rgb.tobytes())


def to_upright_rgb(sent: Image.Image) -> Image.Image:
    """An open picture in RGB, turned as its EXIF says and laid over white where it can be seen through."""
    try:
        turn = TURNS.get(sent.getexif().get(ORIENTATION, 1))
    except Exception:  # noqa: BLE001  # a stranger's EXIF breaks the library in ways that it doesn't name
        turn = None
    rgb = _opaque(sent)
    return rgb if turn is None else rgb.transpose(turn)


def read_mask(value: object, field: str, width: int, height: int, soft: bool = False) -> bytes:
    """A request's mask on the grid of latents, a byte for each: 255 where the picture is drawn anew.

    Args:
        width, height: of the job, in pixels.
        soft: keep what is between black and white.

    Raises:
        Rejected: it cannot be read, or draws nothing anew.
    """
    with open_image(decode_base64(value, field), field) as sent:
        rgba = _eight_bit(sent).convert("RGBA")
        black = Image.new("RGBA", rgba.size, "black")
        luma = np.asarray(Image.alpha_composite(black, rgba).convert("L"))
    if soft:
        grey = Image.fromarray(luma).resize((width // 8, height // 8), Image.Resampling.BOX)
        return _some(np.asarray(grey), field).tobytes()
    rows, columns = (_nearest(old, new // 8) for old, new in zip(luma.shape, (height, width), strict=True))
    chosen = luma[rows][:, columns] > WHITE_ENOUGH
    return (_some(chosen, field) * np.uint8(255)).tobytes()


def _some(changes: Changes, field: str) -> Changes:
    """What a mask says of every place, if it changes any."""
    if not changes.any():
        raise Rejected(field, "black everywhere; what is to be drawn anew must be white")
    return changes


def _nearest(old: int, new: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Which of `old` places lies under the middle of each of `new` ones."""
    return ((np.arange(new) + 0.5) * old / new).astype(np.int64)


def _eight_bit(sent: Image.Image) -> Image.Image:
    """A picture of 16 bits a channel in 8; any other as it is."""
    if not sent.mode.startswith("I"):
        return sent
    values = np.asarray(sent).clip(0, 65535).astype(np.uint32)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _opaque(sent: Image.Image) -> Image.Image:
    """A picture's colours, over white where it can be seen through."""
    sent = _eight_bit(sent)
    if not sent.has_transparency_data:
        return sent.convert("RGB")
    rgba = sent.convert("RGBA")
    if np.asarray(rgba.getchannel("A")).min() >= STEALTH:
        return rgba.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
