"""`POST /ai/generate-image`."""

import asyncio
from time import perf_counter

from fastapi import Request
from fastapi.responses import Response

from pipelines.job import Job
from server.api.jobs import decode_in_slot, receive_body, submit_job, wait_for_result
from server.api.memory import measure_work
from server.api.responses import build_image_response, build_warning_headers, negotiate
from server.api.state import AppState, StateDependency, get_reservation
from server.api.threads import call_in_thread
from server.engine.engine import Result
from server.picture.writer import MetadataPolicy, write_job_picture
from server.request.resolve import ResolvedRequest, resolve
from server.request.schema import GenerateRequest, read_request
from server.request.vibes import has_references


async def generate_image(request: Request, state: StateDependency) -> Response:
    """Generate images and return them in the form that `Accept` asks for, by default NAI's ZIP."""
    resolved = await resolve_generate(request, state, await receive_generate(request, state))
    media_type = negotiate(request.headers, resolved.image_format, state.zip_type)
    result = await run_job(request, resolved.job)
    started = perf_counter()
    images = await encode_images(state.metadata_for(resolved.job.model), resolved, result)
    seeds = resolved.job.passes[0].seeds
    response = await call_in_thread(build_image_response, media_type, images, seeds, resolved.image_format)
    timings = {"queue": result.queue_seconds, "draw": result.run_seconds, "encode": perf_counter() - started}
    entries = (f"{name};dur={1000 * seconds:.1f}" for name, seconds in timings.items())
    response.headers["Server-Timing"] = ", ".join(entries)
    response.headers.update(build_warning_headers(resolved.warnings))
    return response


async def run_job(request: Request, job: Job) -> Result:
    """Return the result of a request's job; its images count as memory that the request holds."""
    result = await wait_for_result(submit_job(request, job), request)
    get_reservation(request).hold(sum(image.nbytes for image in result.images))
    return result


async def receive_generate(request: Request, state: AppState) -> GenerateRequest:
    """Return a request to generate images, read but not resolved."""
    return await call_in_thread(read_request, await receive_body(request, state))


async def resolve_generate(request: Request, state: AppState, sent: GenerateRequest) -> ResolvedRequest:
    """Return a request resolved to a job; its images are decoded in one of the slots."""
    if sent.task == "generate" and not has_references(sent.parameters):  # it need not wait for a slot
        return await call_in_thread(resolve, sent, state.current_policy())
    resolved = await decode_in_slot(request, resolve, sent, state.current_policy())
    get_reservation(request).resize(measure_work(resolved.job))
    return resolved


async def encode_images(metadata: MetadataPolicy, resolved: ResolvedRequest, result: Result) -> list[bytes]:
    """Return a job's images as files, each encoded in a thread of its own."""
    recorded, image_format = resolved.recorded, resolved.image_format

    def encode(index: int) -> bytes:
        return write_job_picture(metadata, resolved.job, result, index, recorded, image_format)

    return await asyncio.gather(*(call_in_thread(encode, index) for index in range(len(result.images))))
