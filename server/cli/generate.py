"""`naiad generate`: one request without HTTP, resolved, run and written as the server does it, with a progress bar."""

from collections.abc import Generator, Mapping
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import contextmanager
from dataclasses import replace
from logging import ERROR, LogRecord

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipelines.job import Prompts
from server.cli.bootstrap import build_engine, build_metadata_policy, build_request_policy
from server.cli.logs import keep_records
from server.cli.output import OutputChoice, reserve_files
from server.config.settings import Settings
from server.engine.engine import Engine
from server.engine.events import OnEvent, ignore_event
from server.engine.model import ServedModel
from server.engine.ticket import Result, Ticket
from server.errors import Unavailable
from server.picture.writer import write_job_picture
from server.request.resolve import ResolvedRequest, resolve
from server.request.schema import read_request

TEXT_BYTES = 1 << 14
"""Room for the metadata of an image file."""


def generate_to_file(
    model: ServedModel, settings: Settings, body: Mapping[str, object], output: OutputChoice
) -> None:
    """Generate the images of a request body, write them, and print their paths.

    Raises `Rejected` if a value in the request is not allowed, and `ConfigError` if a setting is invalid or a file
    cannot be written.
    """
    request, policy = read_request(body), build_request_policy(model, settings)
    resolved = resolve(request, policy)  # before loading, which may take a minute
    metadata = build_metadata_policy(model, settings)
    last = resolved.job.passes[-1]
    paths = output.choose_paths(len(last.seeds))
    # a file is rarely larger than its pixels: RGBA, and room for the metadata
    with reserve_files(paths, 4 * last.width * last.height + TEXT_BYTES, output.force) as reserved:
        with run_engine(model, settings) as engine:
            if engine.model not in (None, model):  # what it predicts is known only after loading
                resolved = resolve(request, replace(policy, model=engine.model))
            _print_request(resolved)
            result = wait_with_progress(engine.submit(resolved.job), len(last.seeds))
        written = [
            file.publish(write_job_picture(metadata, resolved, result, index))
            for index, file in enumerate(reserved)
        ]
    for path in written:  # last, because the reader of a pipe may have gone
        typer.echo(str(path))


@contextmanager
def run_engine(
    model: ServedModel, settings: Settings, on_event: OnEvent = ignore_event, warms_up: bool = False
) -> Generator[Engine]:
    """Load a model; raise `ConfigError` if a setting is why that fails, else `Unavailable`.

    By default it is not warmed up as for a server, which takes longer than it saves a single request.
    """
    engine = build_engine(model, settings, (), on_event, warms_up)
    engine.start()
    try:
        with keep_records("naiad.engine", _is_news):
            _wait_ready(engine, settings)
        yield engine
    finally:
        engine.stop()


def _is_news(record: LogRecord) -> bool:
    """Return whether a record is not why the model cannot be loaded, which the command's own error says."""
    return record.levelno < ERROR or record.exc_info is not None


def _wait_ready(engine: Engine, settings: Settings) -> None:
    """Do as `Engine.wait_ready`; that the device is not there is a wrong setup too, as nothing waits for it to come."""
    try:
        engine.wait_ready()
    except Unavailable:
        from server.engine.device import resolve_device

        resolve_device(settings.device)
        raise


def _print_request(resolved: ResolvedRequest) -> None:
    encoded = resolved.job.prompts
    _print_prompts(encoded.written or encoded)
    if encoded.written is not None:
        typer.echo("in the model's dialect:", err=True)
        _print_prompts(encoded)
    for warning in resolved.warnings:
        typer.echo(f"warning: {warning}", err=True)


def _print_prompts(prompts: Prompts) -> None:
    typer.echo(f"prompt: {prompts.positive}\nnegative: {prompts.negative}", err=True)
    for character in prompts.characters:
        typer.echo(f"character at {character.x:g}, {character.y:g}: {character.positive}", err=True)


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
    with Progress(*columns, console=Console(stderr=True)) as progress:
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
