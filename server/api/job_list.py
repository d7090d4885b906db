"""`GET /queue` lists jobs, and `DELETE /queue/{id}` cancels one: a client's own, or for the operator anyone's."""

from typing import Any

from fastapi import Request

from pipelines.cost import count_images
from pipelines.job import Job, UpscaleJob, Work
from server.api.active_jobs import ActiveJob
from server.api.jobs import identify_client
from server.api.state import StateDependency, get_account, get_app_state, get_capacity
from server.engine.events import name_kind
from server.engine.queue import Forecast
from server.errors import Conflict, NotFound, shorten


async def list_jobs(request: Request, state: StateDependency) -> dict[str, object]:
    """The jobs that wait or run, in the order in which the device takes them."""
    client = _choose_client(request)
    jobs = {job.ticket: job for job in get_capacity(request).jobs}
    forecasts = [forecast for forecast in state.engine.forecast() if forecast.ticket in jobs]
    entries = [
        _describe(jobs[forecast.ticket], place, forecast, is_operator=client is None)
        for place, forecast in enumerate(forecasts, 1)
        if client in (None, jobs[forecast.ticket].name.client)
    ]
    return {"jobs": entries}


async def cancel_job(id: str, request: Request) -> dict[str, object]:
    """Cancel a job by its id, or by the X-Correlation-Id of its request."""
    client, jobs = _choose_client(request), get_capacity(request).jobs
    found = jobs.find(id, client)
    if not found and jobs.has_ended(id, client):
        raise Conflict(f"{shorten(id)} has already ended")
    if not found:
        raise NotFound(f"{shorten(id)}: no such job; GET /queue lists those that wait or run")
    for job in found:
        job.fail(Conflict(f"cancelled by DELETE /queue/{shorten(id)[1:-1]}"))
    return {"cancelled": [job.name.id for job in found]}


def _choose_client(request: Request) -> str | None:
    """Return whose jobs a request may see and cancel; None for the operator, who may all."""
    authorization = request.headers.get("authorization", "")
    if get_app_state(request).access.is_operator(authorization):
        return None
    return identify_client(request, get_account(request))


def _describe(job: ActiveJob, place: int, forecast: Forecast, *, is_operator: bool) -> dict[str, object]:
    owner = {"client": job.name.client} if is_operator else {}
    return {
        "id": job.name.id,
        "correlation_id": job.name.correlation_id or None,
        **owner,
        "state": "waiting" if job.ticket.queue_seconds is None else "running",
        "place": place,
        **_describe_work(job.ticket.work),
        "progress": round(forecast.done, 3),
        "seconds_to_start": round(forecast.start, 1),
        "seconds_to_end": round(forecast.end, 1),
    }


def _describe_work(work: Work) -> dict[str, Any]:
    """Return what a job is for, and how much of it; null where that means nothing."""
    if isinstance(work, Job):
        last, model, steps = work.passes[-1], work.model, work.steps
        size = last.width, last.height
    elif isinstance(work, UpscaleJob):
        size, model, steps = (work.width, work.height), None, None
    else:
        size, model, steps = (work.image.width, work.image.height), work.model, None
    size_fields = dict(zip(("width", "height"), size, strict=True))
    return {
        "task": name_kind(work),
        "images": count_images(work),
        **size_fields,
        "steps": steps,
        "model": model,
    }
