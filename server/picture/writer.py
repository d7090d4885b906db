"""Writing finished images as files, with metadata and signature in NAI's layout."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, TypeAlias

import numpy as np

from pipelines.job import Job
from pipelines.types import Pixels, Sigmas
from server.engine.model import ServedModel
from server.engine.ticket import Result
from server.picture import png, webp
from server.picture.comment import (
    GENERATED,
    build_alpha_text,
    build_comment,
    build_text_fields,
    describe_job,
)
from server.picture.signature import SigningKey, sign_comment
from server.picture.stealth import hide
from server.request.resolve import ResolvedRequest
from server.request.schema import ImageFormat

log = logging.getLogger("naiad")
Alpha: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.uint8]]
ENCODERS = {"png": png.encode_png, "webp": webp.encode_webp}


@dataclass(frozen=True, slots=True)
class MetadataPolicy:
    """The metadata that a server writes into its images.

    Attributes:
        source_hash: 8 upper-case hex digits that identify the model.
        key: the signing key; only "full" needs one.
        level: "full" writes and signs all fields, also in the alpha. "plain" writes text fields with naiad as the
            `Software`, without key and signature, so that only the model identifies the operator. "none" writes
            nothing.
        batching, inpainting: the mode, and the method ("network" or "blend"), recorded under `naiad`.
        files: fingerprints of the auxiliary weights, recorded under `naiad`.
        vibe_files: those of the image adapter, recorded where an image has references.
        lossy: settings of `speed` that are on and change pictures, recorded under `naiad`.
    """

    source_hash: str
    key: SigningKey | None
    level: Literal["full", "plain", "none"]
    batching: str
    inpainting: str = "blend"
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    vibe_files: Mapping[str, str] = field(default_factory=dict[str, str])
    lossy: Mapping[str, object] = field(default_factory=dict[str, object])

    def __post_init__(self) -> None:
        if self.level == "full" and self.key is None:
            raise ValueError("metadata level 'full' needs a signing key")

    def for_model(self, model: ServedModel) -> "MetadataPolicy":
        """Return the policy for another model's images."""
        decoder_files = model.decoder_files if self.lossy.get("decoder") == "tiny" else dict[str, str]()
        return replace(
            self,
            source_hash=model.fingerprint,
            inpainting=model.inpainting,
            files={**model.files, **decoder_files},
            vibe_files={} if model.vibe is None else model.vibe.files,
        )

    def describe_job(self, job: Job, sigmas: Sigmas) -> dict[str, object]:
        """Return what is recorded under `naiad`; it is enough to generate the job's images again."""
        files = {**self.files, **self.vibe_files} if job.vibes else self.files
        methods = self.batching, self.source_hash, self.inpainting
        return describe_job(job, sigmas, *methods, files, self.lossy)


def write_job_picture(
    policy: MetadataPolicy,
    resolved: ResolvedRequest,
    result: Result,
    index: int,
    naiad_object: Mapping[str, object] | None = None,
) -> bytes:
    """Return the file of image `index` of a job.

    Args:
        naiad_object: what `describe_job` returns, which hashes the job's source images, for all images of the job.

    Raises:
        Rejected: the format cannot hold an image of this size.
    """
    make_comment = partial(build_comment, resolved.job, index, resolved.recorded)
    if naiad_object is None:
        naiad_object = policy.describe_job(resolved.job, result.sigmas)
    rgb = result.images[index]
    return write_picture(policy, rgb, make_comment, naiad_object, result.run_seconds, resolved.image_format)


def write_picture(
    policy: MetadataPolicy,
    rgb: Pixels,
    make_comment: Callable[[Mapping[str, object] | None], dict[str, object]],
    naiad_object: Mapping[str, object],
    seconds: float,
    image_format: ImageFormat,
    title: str = GENERATED,
    alpha: Alpha | None = None,
) -> bytes:
    """Return the file of an image, with the metadata that the policy asks for.

    Args:
        make_comment: builds the Comment around a `naiad` object, or without one below level "full".
        naiad_object: describes how the image was made, for exact reproduction.
        alpha: the alpha of a transparent image; it then holds no metadata, which is in the text fields alone.

    Raises:
        Rejected: the format cannot hold an image of this size.
    """
    encode, pixels = ENCODERS[image_format], rgb if alpha is None else np.dstack((rgb, alpha))
    if policy.level == "none":
        return encode(pixels, {})
    if policy.key is None or policy.level == "plain":
        return encode(pixels, build_text_fields(make_comment(None), policy.source_hash, seconds, title=title))
    comment = sign_comment(rgb, make_comment(naiad_object), policy.key)
    fields = build_text_fields(comment, policy.source_hash, seconds, policy.key.public, title)
    if alpha is not None:
        return encode(pixels, fields)
    height, width = rgb.shape[:2]
    columns = hide(build_alpha_text(fields), height, width)
    if columns is None:
        reason = "image is too small for metadata in its alpha"
        log.warning("a %s %s", f"{width}x{height}", reason, extra={"repeated": reason})
        columns = np.empty((height, 0), np.uint8)
    return encode(rgb, fields, columns)
