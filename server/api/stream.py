"""`POST /ai/generate-image-stream`: previews while the images are generated, then the images."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial
from secrets import randbelow

from fastapi import Request
from fastapi.responses import Response

from server.api.event_response import EventResponse
from server.api.frames import Encoding, Event, build_error_event, build_image_event, choose_encoding
from server.api.generation import receive_generate, resolve_generate
from server.api.jobs import run_for_client, submit_job
from server.api.memory import Reservation
from server.api.previews import LatestPreviews
from server.api.responses import build_warning_headers
from server.api.state import StateDependency, get_reservation
from server.api.threads import call_in_thread
from server.engine.engine import Result, Ticket
from server.errors import describe_failure
from server.picture.writer import MetadataPolicy, write_job_picture
from server.request.resolve import ResolvedRequest

KEEP_ALIVE = 15.0
"""Seconds of silence after which a client is sent a frame without an event, where there is one."""


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """A request to stream images, and its id in every event."""

    resolved: ResolvedRequest
    encoding: Encoding
    id: int

    def encode(self, kind: str, image: int, step: int, sigma: float, file: bytes) -> bytes:
        """Return the frame of an image."""
        return self.encoding.encode(build_image_event(kind, self.id, image, step, sigma, file))

    def encode_error(self, request_id: str, error: BaseException) -> bytes:
        """Return the frame of a failure, and log it."""
        event: Event = build_error_event(self.id, *describe_failure(error, request_id))
        return self.encoding.encode(event)


async def generate_image_stream(request: Request, state: StateDependency) -> Response:
    """Generate images and stream them; what fails before the first frame is answered with its own status."""
    read = await receive_generate(request, state)
    encoding = choose_encoding(read.parameters.stream, request.headers)
    sent = StreamRequest(await resolve_generate(request, state, read), encoding, randbelow(2**31))
    previews = LatestPreviews()
    ticket = submit_job(request, sent.resolved.job, previews.put)
    ticket.future.add_done_callback(previews.wake)
    frames = stream_frames(
        sent, ticket, previews, state.metadata_for(sent.resolved.job.model), get_reservation(request)
    )
    try:
        first = await run_for_client(request, anext(frames))
    except BaseException:
        ticket.cancel()  # the generator does, if it has begun
        raise
    headers = build_warning_headers(sent.resolved.warnings)
    if ticket.queue_seconds is not None:
        headers["Server-Timing"] = f"queue;dur={1000 * ticket.queue_seconds:.1f}"
    encode_error = partial(sent.encode_error, request.scope["request_id"])
    return EventResponse(first, frames, encode_error, encoding.media_type, headers)


async def stream_frames(
    sent: StreamRequest,
    ticket: Ticket,
    previews: LatestPreviews,
    metadata: MetadataPolicy,
    held: Reservation,
) -> AsyncGenerator[bytes]:
    """Yield the frames of a job's previews and of its images; the ticket is cancelled if they are not all taken."""
    keep_alive = sent.encoding.keep_alive
    try:
        while not ticket.future.done():
            newest = await previews.take(None if keep_alive is None else KEEP_ALIVE)
            for preview in newest:
                yield sent.encode(
                    "intermediate", preview.image, preview.step - 1, preview.sigma, preview.jpeg
                )
            if not newest and keep_alive is not None and not ticket.future.done():
                yield keep_alive
        result = ticket.future.result()
        held.hold(sum(image.nbytes for image in result.images))
        write = partial(write_final, sent, metadata, result)
        for frame in await asyncio.gather(
            *(call_in_thread(write, index) for index in range(len(result.images)))
        ):
            yield frame
    finally:
        ticket.cancel()


def write_final(sent: StreamRequest, metadata: MetadataPolicy, result: Result, index: int) -> bytes:
    """Return the frame of a finished image, which has the step and the sigma that the run ended with."""
    resolved = sent.resolved
    file = write_job_picture(metadata, resolved.job, result, index, resolved.recorded, resolved.image_format)
    passes_before = len(resolved.job.passes) - 1
    last_step = passes_before * resolved.job.steps + len(result.sigmas) - 2
    return sent.encode("final", index, last_step, 0.0, file)
