"""`POST /ai/upscale`: an image made larger, with metadata about itself and its source.

NAI has two forms of this request. The older one is JSON with a `scale`, here 2 if it is missing. The newer one names a
`model` or a `declared_blur_sigma`, or sends the image as a part of a form, and has no `scale`, which then means 4.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import floor, sqrt
from typing import Annotated

from fastapi import Request
from fastapi.responses import Response
from pydantic import Field

from pipelines.job import RgbImage, UpscaleJob
from server.api.archive import archive_pictures
from server.api.jobs import decode_in_slot, receive_body, run_job
from server.api.memory import measure_work
from server.api.responses import answer_images, build_warning_headers
from server.api.state import AppState, StateDependency, get_reservation
from server.api.threads import call_in_thread
from server.api.timings import measure_part
from server.engine.ticket import Result
from server.errors import Rejected
from server.picture.comment import naiad_version
from server.picture.derived import SourceImage, build_derived_comment, open_source
from server.picture.webp import check_webp_size
from server.picture.writer import MetadataPolicy, write_picture
from server.request.images import MAX_PIXELS
from server.request.schema import ImageFormat, Real, WireModel, validate_body

log = logging.getLogger("naiad")
OLD_SCALE, NEW_SCALE = 2.0, 4.0
"""Scales of the older and the newer form of a request without one."""


class UpscaleRequest(WireModel):
    """The request body. `model` and `declared_blur_sigma` mark NAI's newer form; their values change nothing."""

    image: object = Field(None, description="an image in Base64")
    scale: Annotated[Real, Field(gt=1, le=4)] | None = Field(None, description="a number above 1, at most 4")
    image_format: ImageFormat | None = Field(None, description="png or webp")
    model: object = None
    declared_blur_sigma: object = None

    @property
    def is_new_form(self) -> bool:
        """Whether the request has NAI's newer form."""
        marks = self.model, self.declared_blur_sigma
        return isinstance(self.image, bytes) or any(mark is not None for mark in marks)


@dataclass(frozen=True, slots=True)
class Upscale:
    """A validated request: the job, and what its Comment and file need."""

    job: UpscaleJob
    source: SourceImage
    image_format: ImageFormat


async def upscale_image(request: Request, state: StateDependency) -> Response:
    """Upscale an image and return it in the forms that generated images have."""
    upscale = await receive_upscale(request, state)
    result = await run_job(request, upscale.job)
    upscaler = state.policy.model.upscaler
    method = "lanczos" if upscaler is None else upscaler.name
    metadata = state.metadata_for_source(upscale.source.fields)
    with state.metrics.measure_file(upscale.image_format), measure_part(request, "png"):
        file = await call_in_thread(write_upscaled, metadata, upscale, result, method)
    archive_pictures(request, [file], [0])
    response = await answer_images(request, state, [file], [0], upscale.image_format)
    if upscaler is None:
        log.warning("upscale: no upscaler is loaded; an image was upscaled by Lanczos")
        response.headers.update(
            build_warning_headers(["upscale: no upscaler is loaded; upscaled by Lanczos"])
        )
    return response


async def receive_upscale(request: Request, state: AppState) -> Upscale:
    """Return a request to upscale an image, read and decoded; its body is not kept."""
    upscale = await decode_in_slot(request, read_upscale, await receive_body(request, state))
    get_reservation(request).resize(measure_work(upscale.job))
    return upscale


def read_upscale(body: Mapping[str, object]) -> Upscale:
    """Read a request body, or raise `Rejected`; `width` and `height` in it, the source's own size, are ignored."""
    request = validate_body(UpscaleRequest, body)
    if not request.image:
        raise Rejected("image", "is required: an image in Base64")
    rgb, source = open_source(request.image, "image")
    image = RgbImage(*rgb.size, rgb.tobytes())
    scale = request.scale or (NEW_SCALE if request.is_new_form else OLD_SCALE)
    image_format = request.image_format or "png"
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > MAX_PIXELS:
        raise _refuse_size(image, scale)
    check_webp_size(image_format, width, height, "image_format")
    return Upscale(UpscaleJob(image, width, height), source, image_format)


def _refuse_size(image: RgbImage, scale: float) -> Rejected:
    """Return the error for a result above MAX_PIXELS; it starts with NAI's words, which some clients look for."""
    area = image.width * image.height
    allowed = floor(100 * sqrt(MAX_PIXELS / area)) / 100
    return Rejected(
        "",
        f"Image resolution too high: scale {scale:g} of {image.width}x{image.height} is "
        f"{round(area * scale * scale)} pixels; at most {MAX_PIXELS}. Send a scale of at most {allowed:g}, "
        f"or an image of at most {floor(MAX_PIXELS / scale**2)} pixels",
    )


def write_upscaled(metadata: MetadataPolicy, upscale: Upscale, result: Result, method: str) -> bytes:
    """Return the signed file of an image upscaled by a `method`: "lanczos", or the file name of the upscaler."""
    job, source = upscale.job, upscale.source
    naiad_fields = {
        "version": naiad_version(),
        "files": {key: value for key, value in metadata.files.items() if key == "upscaler"},
        "upscale": {"width": job.width, "height": job.height, "by": method},
        "inputs": {"picture": source.pixels},
    }
    build = partial(build_derived_comment, source, job.width, job.height)
    return write_picture(
        metadata, result.images[0], build, naiad_fields, result.run_seconds, upscale.image_format
    )
