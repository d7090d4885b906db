"""`POST /ai/generate-image`."""

import asyncio
from dataclasses import dataclass
from functools import partial

from fastapi import Request
from fastapi.responses import Response

from server.api.archive import archive_picture
from server.api.jobs import decode_in_slot, receive_body, run_for_client, submit_images, wait_for_result
from server.api.memory import measure_work
from server.api.responses import answer_images, build_warning_headers
from server.api.state import AppState, StateDependency, get_reservation
from server.api.threads import call_in_thread
from server.api.timings import measure_part
from server.engine.ticket import Result
from server.picture.writer import write_job_picture
from server.request.controls import has_controls
from server.request.resolve import ResolvedRequest, resolve
from server.request.schema import GenerateRequest, read_request
from server.request.vibes import has_references


async def generate_image(request: Request, state: StateDependency) -> Response:
    """Generate images and return them in the form that `Accept` asks for, by default NAI's ZIP."""
    sent = await receive_generate(request, state)
    generated = await run_and_encode(request, state, await resolve_generate(request, state, sent))
    resolved = generated.resolved
    seeds, image_format = resolved.job.passes[0].seeds, resolved.image_format
    response = await answer_images(request, state, generated.files, seeds, image_format)
    response.headers.update(build_warning_headers(resolved.warnings))
    return response


@dataclass(frozen=True, slots=True)
class Generated:
    """The files of a job's images, and the request that it is of: this one, or the one of which this is a retry."""

    resolved: ResolvedRequest
    files: list[bytes]


async def run_and_encode(request: Request, state: AppState, resolved: ResolvedRequest) -> Generated:
    """Run a job and encode its images; the request holds their memory."""
    waiter, resolved = submit_images(request, resolved)
    result = await wait_for_result(waiter, request)
    get_reservation(request).hold(sum(image.nbytes for image in result.images))
    with measure_part(request, "png"):
        encode = partial(encode_images, request, state, resolved, result)
        files = await run_for_client(request, waiter.job.share_files(encode))
    return Generated(resolved, files)


async def encode_images(
    request: Request, state: AppState, resolved: ResolvedRequest, result: Result
) -> list[bytes]:
    """Return the files of a job's images, each encoded in a thread of its own, and archive them."""
    metadata = state.metadata_for(resolved.job.model)
    described = await call_in_thread(metadata.describe_job, resolved.job, result.sigmas)

    def encode(index: int) -> bytes:
        with state.metrics.measure_file(resolved.image_format):
            file = write_job_picture(metadata, resolved, result, index, described)
        archive_picture(request, index, resolved.job.passes[0].seeds[index], file)
        return file

    return await asyncio.gather(*(call_in_thread(encode, index) for index in range(len(result.images))))


async def receive_generate(request: Request, state: AppState) -> GenerateRequest:
    """Return a request to generate images, read but not resolved."""
    return await call_in_thread(read_request, await receive_body(request, state))


async def resolve_generate(request: Request, state: AppState, sent: GenerateRequest) -> ResolvedRequest:
    """Return a request resolved to a job; its images are decoded in one of the slots."""
    has_images = sent.task != "generate" or has_references(sent.parameters) or has_controls(sent.parameters)
    if not has_images:  # it need not wait for a slot
        return await call_in_thread(resolve, sent, state.current_policy())
    resolved = await decode_in_slot(request, resolve, sent, state.current_policy())
    get_reservation(request).resize(measure_work(resolved.job))
    return resolved
