"""What director tools and annotators share: opening the image, drawing, and the response with signed files."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter

import numpy as np
from fastapi import Request
from fastapi.responses import Response
from PIL import Image

from server.api.archive import archive_pictures
from server.api.jobs import decode_in_slot, hold_quota, run_in_slot
from server.api.responses import answer_images
from server.api.state import AppState, get_capacity, get_reservation
from server.api.threads import call_in_thread
from server.api.timings import measure_part
from server.director.toolbox import Drawing
from server.picture.comment import AUGMENTED, naiad_version
from server.picture.derived import SourceImage, build_tool_comment, open_source
from server.picture.writer import MetadataPolicy, write_picture
from server.request.schema import ImageFormat


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """A tool by name, and the image that it is asked to draw from.

    Attributes:
        recorded: the request's keys in the Comment, as NAI has them.
        options: arguments of the filter.
    """

    name: str
    rgb: Image.Image = field(repr=False)
    source: SourceImage
    recorded: Mapping[str, object]
    options: Mapping[str, float] = field(default_factory=dict[str, float])
    image_format: ImageFormat = "png"


async def open_tool_image(request: Request, value: object, field: str) -> tuple[Image.Image, SourceImage]:
    """Return the image in a request's field, and its metadata."""
    rgb, source = await decode_in_slot(request, open_source, value, field)
    get_reservation(request).resize(3 * rgb.width * rgb.height)
    return rgb, source


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The pictures of a tool.

    Attributes:
        naiad: how they were made, as the Comment records it.
        seconds: the run time.
        seed: of pictures that the model drew.
    """

    drawings: Sequence[Drawing]
    naiad: Mapping[str, object]
    seconds: float
    seed: int = 0


async def answer_filter(request: Request, state: AppState, tool: ToolRequest) -> Response:
    """Draw by a network or a filter, in a thread, and return the pictures in the form that `Accept` asks for."""
    started, toolbox = perf_counter(), state.toolbox
    pixels, slots = np.asarray(tool.rgb), get_capacity(request).decoding  # drawing takes half as much memory
    with hold_quota(request), measure_part(request, "draw"):
        drawings = await run_in_slot(request, slots, toolbox.draw, tool.name, pixels, tool.options)
    network = toolbox.find_network(tool.name)
    by = "filter" if network is None else network.name
    hashes = {} if network is None else {"files": {"tool": network.fingerprint}}
    naiad = {"version": naiad_version(), **hashes, "tool": {"name": tool.name, "by": by, **tool.options}}
    result = ToolResult(drawings, naiad, perf_counter() - started)
    metadata = state.metadata_for_source(tool.source.fields)
    return await answer_drawings(request, state, tool, result, metadata)


async def answer_drawings(
    request: Request, state: AppState, tool: ToolRequest, result: ToolResult, metadata: MetadataPolicy
) -> Response:
    """Return the pictures of a tool as signed files, in the form that `Accept` asks for."""
    get_reservation(request).hold(sum(drawing.rgb.nbytes for drawing in result.drawings))

    def write(drawing: Drawing) -> bytes:
        with state.metrics.measure_file(tool.image_format):
            return write_drawing(metadata, tool, result, drawing)

    with measure_part(request, "png"):
        files = await asyncio.gather(*(call_in_thread(write, drawing) for drawing in result.drawings))
    seeds = [result.seed] * len(files)
    archive_pictures(request, files, seeds)
    return await answer_images(request, state, files, seeds, tool.image_format)


def write_drawing(metadata: MetadataPolicy, tool: ToolRequest, result: ToolResult, drawing: Drawing) -> bytes:
    """Return the signed file of a drawing."""
    build = partial(build_tool_comment, tool.recorded, tool.source)
    return write_picture(
        metadata,
        drawing.rgb,
        build,
        result.naiad,
        result.seconds,
        tool.image_format,
        title=AUGMENTED,
        alpha=drawing.alpha,
    )
