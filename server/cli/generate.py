"""`naiad generate`: one request without HTTP, resolved, run and written as the server does it, with a progress bar."""

from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from server.cli.bootstrap import build_engine, build_metadata_policy, build_request_policy
from server.config.settings import Settings
from server.engine.engine import Result, Ticket
from server.engine.model import ServedModel
from server.picture.writer import write_job_picture
from server.request.resolve import ResolvedRequest, resolve
from server.request.schema import read_request


def generate_to_file(
    model: ServedModel, settings: Settings, body: Mapping[str, object], output: Path
) -> None:
    """Generate the images of a request body; the first is written to `output`, the others to `output`_1 and so on.

    Raises `Rejected` if a value in the request is not allowed, and `ConfigError` if a setting is invalid.
    """
    resolved = resolve(read_request(body), build_request_policy(model, settings))
    metadata = build_metadata_policy(model, settings)
    job = resolved.job
    typer.echo(f"prompt: {job.prompts.positive}\nnegative: {job.prompts.negative}", err=True)
    for warning in resolved.warnings:
        typer.echo(f"warning: {warning}", err=True)
    result = _run(resolved, model, settings)
    for index in range(len(result.images)):
        file = write_job_picture(metadata, job, result, index, resolved.recorded, resolved.image_format)
        path = output if index == 0 else output.with_stem(f"{output.stem}_{index}")
        path.write_bytes(file)
        typer.echo(str(path))


def _run(resolved: ResolvedRequest, model: ServedModel, settings: Settings) -> Result:
    engine = build_engine(model, settings)
    engine.start()
    try:
        engine.wait_ready()
        return wait_with_progress(engine.submit(resolved.job), len(resolved.job.passes[0].seeds))
    finally:
        engine.stop()


def wait_with_progress(ticket: Ticket, images: int) -> Result:
    """Wait for a job of some images behind a progress bar of steps, sigma and pace.

    An interrupt cancels the job before its next evaluation.
    """
    columns = (
        TextColumn("generating"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("sigma {task.fields[sigma]}"),
        TextColumn("{task.fields[pace]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("", total=None, sigma="-", pace="")
        try:
            while not wait((ticket.future,), 0.1, FIRST_COMPLETED).done:
                step = ticket.progress
                if step is not None:
                    done, total = (step.step - 1) * images + step.image, step.steps * images
                    speed = progress.tasks[0].speed
                    pace = f"{speed:.2f} it/s" if speed else ""
                    progress.update(task, completed=done, total=total, sigma=f"{step.sigma:.3g}", pace=pace)
        except KeyboardInterrupt:
            ticket.cancel()
            raise
        progress.update(task, completed=progress.tasks[0].total, sigma="0")
    return ticket.future.result()
