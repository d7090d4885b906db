"""From what the device drew to what a client gets: files that say in NAI's layout what they are and who made them."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from pipelines.job import Job
from pipelines.types import Pixels
from server.engine.engine import Result
from server.picture import png, webp
from server.picture.comment import build_alpha_text, build_comment, build_text_fields, describe_job
from server.picture.signature import SigningKey, sign_comment
from server.picture.stealth import add_opaque_alpha, embed

log = logging.getLogger("naiad")
ImageFormat = Literal["png", "webp"]
ENCODERS = {"png": png.encode_png, "webp": webp.encode_webp}


@dataclass(frozen=True, slots=True)
class MetadataPolicy:
    """What a server puts into every picture.

    Attributes:
        source_hash: 8 upper-case hex digits of the model.
        key: signs the pictures; needed for "full" alone.
        level: "full" signs and writes all fields, in the alpha too; "plain" writes text under our own name and
            neither key nor signature: nothing in it is the operator's own but the model; "none" writes nothing.
        batching: how jobs shared the device, for the canonical job.
        inpainting: likewise how a part of a picture is drawn anew, "network" or "blend".
        files: likewise the hashes of the weights from beside the model.
    """

    source_hash: str
    key: SigningKey | None
    level: Literal["full", "plain", "none"]
    batching: str
    inpainting: str = "blend"
    files: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        if self.level == "full" and self.key is None:
            raise ValueError("full metadata is signed: a key is needed")


def write_job_picture(
    imprint: MetadataPolicy,
    job: Job,
    drawn: Result,
    index: int,
    recorded: Mapping[str, bool],
    image_format: ImageFormat,
) -> bytes:
    """The file of a job's picture `index`.

    Raises:
        Rejected: the format cannot hold a picture of this size.
    """
    ours = describe_job(
        job, drawn.sigmas, imprint.batching, imprint.source_hash, imprint.inpainting, imprint.files
    )
    tell = partial(build_comment, job, index, recorded)
    return write_picture(imprint, drawn.pictures[index], tell, ours, drawn.run_seconds, image_format)


def write_picture(
    imprint: MetadataPolicy,
    rgb: Pixels,
    tell: Callable[[Mapping[str, object] | None], dict[str, object]],
    about: Mapping[str, object],
    seconds: float,
    image_format: ImageFormat,
) -> bytes:
    """The file of a picture with whatever its server puts into it.

    Args:
        tell: makes the Comment, of what is given to it as the `naiad` object.
        about: that object.
        seconds: how long the drawing took.

    Raises:
        Rejected: the format cannot hold a picture of this size.
    """
    encode = ENCODERS[image_format]
    if imprint.level == "none":
        return encode(rgb, {})
    if imprint.key is None or imprint.level == "plain":
        return encode(rgb, build_text_fields(tell(None), imprint.source_hash, seconds))
    told = sign_comment(rgb, tell(about), imprint.key)
    fields = build_text_fields(told, imprint.source_hash, seconds, imprint.key.public)
    return encode(_layered(rgb, fields), fields)


def _layered(rgb: Pixels, fields: Mapping[str, str]) -> Pixels:
    """The picture with its fields in the alpha, if they fit."""
    rgba = embed(rgb, build_alpha_text(fields))
    if rgba is None:
        log.warning("a %dx%d picture is too small for its metadata in alpha", rgb.shape[1], rgb.shape[0])
        return add_opaque_alpha(rgb)
    return rgba
