"""`POST /ai/generate-image-stream`: previews while the images are generated, then the images."""

import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial
from secrets import randbelow

from fastapi import Request
from fastapi.responses import Response

from pipelines.types import Preview
from server.api.error_responses import to_api_error
from server.api.event_response import EventResponse
from server.api.frames import Encoding, build_error_event, build_image_event, choose_encoding
from server.api.generation import encode_images, receive_generate, resolve_generate
from server.api.jobs import Waiter, run_for_client, submit_images
from server.api.memory import Reservation
from server.api.previews import LatestPreviews
from server.api.responses import build_warning_headers
from server.api.state import AppState, StateDependency, get_reservation
from server.api.threads import call_in_thread
from server.api.timings import add_queue, add_result, measure_part
from server.engine.ticket import Result
from server.request.resolve import ResolvedRequest

log = logging.getLogger("naiad")
KEEP_ALIVE = 15.0
"""Seconds of silence after which a client is sent a frame without an event, where there is one."""


async def generate_image_stream(request: Request, state: StateDependency) -> Response:
    """Generate images and stream them; what fails before the first frame is answered with its own status."""
    read = await receive_generate(request, state)
    encoding = choose_encoding(read.parameters.stream, request.headers)
    resolved = await resolve_generate(request, state, read)
    previews = LatestPreviews()
    waiter, resolved = submit_images(request, resolved, previews.put)
    waiter.result.add_done_callback(previews.wake)
    stream = ImageStream(request, state, resolved, encoding, randbelow(2**31))
    frames = stream.encode_frames(waiter, previews, get_reservation(request))
    try:
        first = await run_for_client(request, anext(frames))
    except BaseException:
        waiter.result.cancel()  # the generator does, if it has begun
        raise
    headers = build_warning_headers(resolved.warnings)
    add_queue(request.scope, waiter.job.ticket)
    encode_error = partial(stream.encode_error, request.scope["request_id"])
    return EventResponse(first, frames, encode_error, encoding.media_type, headers)


@dataclass(frozen=True, slots=True)
class ImageStream:
    """The stream of a request's images; `id` is in every event."""

    request: Request
    state: AppState
    resolved: ResolvedRequest
    encoding: Encoding
    id: int

    async def encode_frames(
        self, waiter: Waiter, previews: LatestPreviews, held: Reservation
    ) -> AsyncGenerator[bytes]:
        """Yield the frames of a job's previews and of its images; wait no longer if they are not all taken."""
        keep_alive, result = self.encoding.keep_alive, waiter.result
        try:
            while not result.done():
                newest = await previews.take(None if keep_alive is None else KEEP_ALIVE)
                for preview in newest:
                    yield self._encode_preview(preview)
                if not newest and keep_alive is not None and not result.done():
                    yield keep_alive
            done = result.result()
            held.hold(sum(image.nbytes for image in done.images))
            add_result(self.request.scope, waiter.job.ticket, done)
            encode = partial(encode_images, self.request, self.state, self.resolved, done)
            with measure_part(self.request, "png"):
                files = await waiter.job.share_files(encode)
            for index, file in enumerate(files):
                yield await call_in_thread(self._encode_final, done, index, file)
        finally:
            result.cancel()

    def _encode_preview(self, preview: Preview) -> bytes:
        step = preview.step - 1
        return self._encode("intermediate", preview.image, step, preview.sigma, preview.jpeg)

    def _encode_final(self, result: Result, index: int, file: bytes) -> bytes:
        """Return the frame of a finished image, which has the step and the sigma that the run ended with."""
        job = self.resolved.job
        last_step = (len(job.passes) - 1) * job.steps + len(result.sigmas) - 2
        return self._encode("final", index, last_step, 0.0, file)

    def _encode(self, kind: str, image: int, step: int, sigma: float, file: bytes) -> bytes:
        return self.encoding.encode(build_image_event(kind, self.id, image, step, sigma, file))

    def encode_error(self, request_id: str, error: BaseException) -> bytes:
        """Return the frame of a failure, and log it."""
        answer = to_api_error(error, request_id)
        log.info("%s ended its stream with %d %s", request_id, answer.status, answer.message)
        return self.encoding.encode(build_error_event(self.id, answer.status, answer.message))
