"""Drawing one request without HTTP, on the server's own path: `naiad generate`."""

from collections.abc import Mapping
from pathlib import Path

import typer

from server.cli import bootstrap as serving
from server.cli.progress import wait_with_progress
from server.config.settings import Settings
from server.engine.engine import Result
from server.engine.model import ServedModel
from server.picture.writer import write_job_picture
from server.request.resolve import ResolvedRequest, resolve
from server.request.schema import read_request


def generate_to_file(
    served: ServedModel, settings: Settings, body: Mapping[str, object], output: Path
) -> None:
    """Resolve, draw and save; the first picture goes to `output`, the others beside it by number.

    Raises:
        Rejected: the request cannot be drawn.
        ConfigError: a setting, or the place of the picture, is wrong.
    """
    resolved = resolve(read_request(body), serving.build_request_policy(served, settings))
    imprint = serving.build_metadata_policy(served, settings)
    for name, text in (
        ("prompt", resolved.job.prompts.positive),
        ("negative", resolved.job.prompts.negative),
    ):
        typer.echo(f"{name}: {text}", err=True)
    for warning in resolved.warnings:
        typer.echo(f"warning: {warning}", err=True)
    drawn = _drawn(resolved, served, settings)
    for index in range(len(drawn.pictures)):
        place = output if index == 0 else output.with_stem(f"{output.stem}_{index}")
        place.write_bytes(
            write_job_picture(imprint, resolved.job, drawn, index, resolved.recorded, resolved.image_format)
        )
        typer.echo(str(place))


def _drawn(resolved: ResolvedRequest, served: ServedModel, settings: Settings) -> Result:
    engine = serving.build_engine(served, settings)
    engine.start()
    try:
        engine.wait_ready()
        return wait_with_progress(engine.submit(resolved.job), len(resolved.job.passes[0].seeds))
    finally:
        engine.stop()
