"""What the index keeps of a picture: what its file's metadata and name say, and nothing else.

So the index can be made again from the files, and knows no prompt of a picture without metadata.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import cast

from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from server.archive.names import PictureName
from server.errors import Rejected
from server.picture.comment import strip_unwritable
from server.picture.exif import read_exif
from server.picture.inspection import read_exif_fields
from server.picture.parts import FileParts, UnreadableFile
from server.picture.png import SIGNATURE
from server.picture.png_chunks import read_png
from server.picture.prompts import read_settings
from server.request.v4_prompt import flatten_v4_prompt

MOST_STEPS = 1_000_000


@dataclass(frozen=True, slots=True)
class PictureRecord:
    """A row of the index; a text is empty, and a number None, where the metadata do not say it.

    Attributes:
        file: path below the archive's folder.
        created: milliseconds since 1970 (UTC).
        owner: tag of the account.
        model: NAI's id of the model, of pictures with full metadata.
        source: hash of the model, as in `Source`.
    """

    id: str
    file: str
    created: int
    request_id: str
    owner: str
    seed: int
    width: int
    height: int
    prompt: str
    negative_prompt: str
    model: str
    source: str
    sampler: str
    steps: int | None


def read_record(name: PictureName, path: str, data: bytes) -> PictureRecord:
    """Return the record of a file with this content.

    Raises:
        UnreadableFile: the file is no picture, or damaged.
    """
    (width, height), fields = _read_header(data)
    settings = read_settings(fields)
    steps = settings.get("steps")
    return PictureRecord(
        id=name.id,
        file=path,
        created=name.milliseconds,
        request_id=name.request_id,
        owner=name.owner,
        seed=name.seed,
        width=width,
        height=height,
        prompt=_read_prompt(settings, "v4_prompt", "prompt"),
        negative_prompt=_read_prompt(settings, "v4_negative_prompt", "uc"),
        model=_read_model(settings),
        source=strip_unwritable(fields.get("Source", "")).rpartition(" ")[2],
        sampler=_read_text(settings, "sampler"),
        steps=steps if isinstance(steps, int) and 0 < steps < MOST_STEPS else None,
    )


def _read_header(data: bytes) -> tuple[tuple[int, int], Mapping[str, str]]:
    """Return the size and the text fields of a file; its pixels are not decoded."""
    try:
        if data.startswith(SIGNATURE):
            parts = read_png(data)
            return PngImageFile(BytesIO(parts.pixels)).size, parts.texts
        if len(data) < 8 + int.from_bytes(data[4:8], "little"):  # Pillow does not look at it
            raise UnreadableFile("a WebP that ends early")
        image = WebPImageFile(BytesIO(FileParts(data).pixels))
        return image.size, read_exif_fields(read_exif(image.info.get("exif", b"")))
    except UnreadableFile:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, struct.error):
        raise UnreadableFile("not a PNG or WebP, or damaged") from None


def _read_prompt(settings: Mapping[str, object], structured: str, plain: str) -> str:
    """Return a prompt with the captions of its characters, if it has any."""
    try:
        text = flatten_v4_prompt(settings.get(structured), structured)
    except Rejected:
        text = ""
    return strip_unwritable(text) or _read_text(settings, plain)


def _read_model(settings: Mapping[str, object]) -> str:
    """Return the model's id in the description of the job."""
    value = settings.get("naiad")
    for key in ("job", "model"):
        value = cast("dict[str, object]", value).get(key) if isinstance(value, dict) else None
    return strip_unwritable(value) if isinstance(value, str) else ""


def _read_text(settings: Mapping[str, object], key: str) -> str:
    value = settings.get(key)
    return strip_unwritable(value) if isinstance(value, str) else ""
