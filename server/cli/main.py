"""The `naiad` command. Commands import what they need when they run, so that `--help` is instant."""

import json
import os
import sys
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pipelines.errors import PipelineError, UnusableSetting, WeightsError
from server.cli import options, pictures, tls, tokens
from server.cli.options import option
from server.cli.output import OutputChoice
from server.cli.status import INTERRUPTED, WRONG_SETUP
from server.config.catalog import choose_catalog
from server.config.settings import load_settings
from server.config.toml import ConfigError
from server.errors import ApiError, Rejected

app = typer.Typer(
    cls=options.Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command. Expected errors are printed in one line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # characters that the terminal's encoding lacks are escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _end_at_once()
        raise
    except (ConfigError, PipelineError, ApiError, OSError) as error:
        typer.echo(f"naiad: {_explain(error)}", err=True)
        _flush()
        is_wrong = isinstance(error, ConfigError | UnusableSetting | WeightsError | Rejected)
        sys.exit(WRONG_SETUP if is_wrong else 1)


def _explain(error: Exception) -> str:
    """Return the message of an error for the command line."""
    if isinstance(error, Rejected):
        return options.name_option(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'the output cannot be written'}: {error.strerror}"
    return str(error)


def _end_at_once() -> NoReturn:
    """Exit without Python's own end, in which a model that is loaded or drawn with in another thread would crash."""
    _flush()
    os._exit(INTERRUPTED)


def _flush() -> None:
    """Write what was printed; what cannot be written is dropped, or it would fail again at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_version(asked: bool) -> None:
    """Print the installed version and end the command, if asked."""
    if asked:
        typer.echo(f"naiad {version('naiad')}")
        raise typer.Exit


@app.callback()
def run_command(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """A self-hosted server for the NovelAI Diffusion V3 image API with open SDXL weights."""


@app.command()
def serve(
    checkpoint: options.Checkpoint = None,
    demo: options.Demo = False,
    host: Annotated[
        str | None, option(help="Addresses to listen on, separated by commas; :: is all.")
    ] = None,
    port: Annotated[int | None, option(help="Port to listen on.")] = None,
    use_tls: Annotated[
        bool | None, option("--tls/--no-tls", help="Serve HTTPS under NAI's names; see naiad tls.")
    ] = None,
    archive: Annotated[Path | None, option(help="Folder in which every picture is kept.")] = None,
    config: options.Config = None,
    weights: options.WeightsFile = None,
    prediction: options.Prediction = None,
    zsnr: options.Zsnr = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    replicas: Annotated[
        int | None, option(min=0, help="Number of replicas, a GPU each; needs the extra `scale`.")
    ] = None,
    max_replicas: Annotated[
        int | None, option(min=1, help="Number up to which replicas are added under load.")
    ] = None,
    cluster: Annotated[
        str | None, option(help="Address of the Ray cluster for the replicas; by default this machine.")
    ] = None,
) -> None:
    """Serve a model over HTTP until interrupted."""
    flags = {"host": host, "port": port, "tls": use_tls, "archive": archive}
    flags |= {"device": device, "dtype": dtype}
    settings = load_settings(config, os.environ, flags)
    catalog = choose_catalog(settings, checkpoint, demo, weights, prediction, zsnr)
    from server.engine.model import detect_model, detect_others

    if replicas is None:
        if max_replicas is not None or cluster is not None:
            raise ConfigError("--max-replicas and --cluster need --replicas")
        from server.cli.serve import run_server

        run_server(detect_model(catalog), settings, *detect_others(catalog))
        return
    from server.cli.replicas import ReplicaFlags, run_replicas
    from server.scale.service import Service

    service = Service(detect_model(catalog), settings, *detect_others(catalog))
    run_replicas(service, ReplicaFlags(replicas, max_replicas, cluster))


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="Prompt, in NAI's syntax.")],
    checkpoint: options.Checkpoint = None,
    demo: options.Demo = False,
    output: options.Output = None,
    force: options.Force = False,
    negative: Annotated[str, typer.Option(help="Negative prompt; if empty, the UC preset is used.")] = "",
    quality: Annotated[bool, typer.Option(help="Add NAI's quality tags.")] = True,
    uc_preset: Annotated[int, typer.Option(help="Index of the model's UC preset; the last is none.")] = 0,
    size: Annotated[str | None, option(help="Width and height, like 832x1216.")] = None,
    steps: Annotated[int | None, option(help="Number of steps.")] = None,
    scale: Annotated[float | None, option(help="Guidance scale.")] = None,
    sampler: Annotated[str | None, option(help="Sampler, like k_euler.")] = None,
    schedule: Annotated[str | None, option(help="Noise schedule, like native or karras.")] = None,
    seed: options.Seed = None,
    samples: Annotated[int | None, option(help="Number of images.")] = None,
    control: options.Controls = None,
    config: options.Config = None,
    weights: options.WeightsFile = None,
    model: options.Model = None,
    prediction: options.Prediction = None,
    zsnr: options.Zsnr = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Generate the images of one request, exactly as the server does."""
    settings = load_settings(config, os.environ, {"device": device, "dtype": dtype})
    width, height = (None, None) if size is None else options.parse_size(size)
    choice = OutputChoice(output, Path("out.png"), force)
    parameters = {
        "negative_prompt": negative,
        "qualityToggle": quality,
        "ucPreset": uc_preset,
        "width": width,
        "height": height,
        "steps": steps,
        "scale": scale,
        "sampler": sampler,
        "noise_schedule": schedule,
        "seed": seed,
        "n_samples": samples,
        "controls": [options.parse_control(text) for text in control or ()],
        "image_format": options.parse_format(choice.path),
    }
    catalog = choose_catalog(settings, checkpoint, demo, weights, prediction, zsnr).with_default(model)
    from server.cli.generate import generate_to_file
    from server.engine.model import detect_model

    generate_to_file(detect_model(catalog), settings, {"input": prompt, "parameters": parameters}, choice)


@app.command()
def models(
    checkpoint: options.Checkpoint = None,
    demo: options.Demo = False,
    config: options.Config = None,
    weights: options.WeightsFile = None,
    prediction: options.Prediction = None,
    zsnr: options.Zsnr = None,
    as_json: options.AsJson = False,
) -> None:
    """List all models: what each file is, the evidence, and its profile."""
    settings = load_settings(config, os.environ, {})
    catalog = choose_catalog(settings, checkpoint, demo, weights, prediction, zsnr)
    from server.engine.model import build_model_cards, format_card

    cards = build_model_cards(catalog)
    typer.echo(json.dumps(cards, indent=2) if as_json else "\n\n".join(map(format_card, cards)))


@app.command()
def check(
    checkpoint: options.Checkpoint = None,
    demo: options.Demo = False,
    config: options.Config = None,
    weights: options.WeightsFile = None,
    prediction: options.Prediction = None,
    zsnr: options.Zsnr = None,
    probe: Annotated[
        bool, option(help="Also load each model and find out from its network what it predicts.")
    ] = False,
) -> None:
    """Check settings, profiles, presets, accounts, the signing key and all checkpoints, without loading a model.

    For a folder of checkpoints, print what each file is and whether it can be served.
    """
    settings = load_settings(config, os.environ, {})
    from server.cli.check import check_setup
    from server.cli.check_folder import check_folder, is_collection

    if checkpoint is not None and is_collection(checkpoint):
        lines = check_folder(checkpoint)
    else:
        catalog = choose_catalog(settings, checkpoint, demo, weights, prediction, zsnr)
        lines = check_setup(catalog, settings, probe)
    for line in lines:
        typer.echo(line)


@app.command()
def bench(
    checkpoint: options.Checkpoint = None,
    demo: options.Demo = False,
    sizes: Annotated[
        str | None, option(help="Sizes, like 832x1216,512x768; by default 832x1216 and the model's own.")
    ] = None,
    concurrency: Annotated[
        str, typer.Option(help="Numbers of pictures that are drawn at a time, each measured on its own.")
    ] = "1,4",
    steps: Annotated[
        int | None, option(help="Number of steps; by default that of the model's profile.")
    ] = None,
    pictures: Annotated[
        int,
        typer.Option(min=3, max=1000, help="Pictures in each measurement, at least two for each at a time."),
    ] = 3,
    json_file: Annotated[
        Path | None, option("--json", help="File to write the same facts to as JSON.")
    ] = None,
    force: options.Force = False,
    config: options.Config = None,
    weights: options.WeightsFile = None,
    model: options.Model = None,
    prediction: options.Prediction = None,
    zsnr: options.Zsnr = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Measure how fast a model draws here, and print a table to post. Ctrl+C ends it with what was measured."""
    settings = load_settings(config, os.environ, {"device": device, "dtype": dtype})
    numbers, given = (
        options.parse_concurrency(concurrency),
        None if sizes is None else options.parse_sizes(sizes),
    )
    catalog = choose_catalog(settings, checkpoint, demo, weights, prediction, zsnr).with_default(model)
    from server.cli.bench import BenchPlan, choose_sizes, run_bench
    from server.engine.model import detect_model

    detected = detect_model(catalog)
    plan = BenchPlan(given or choose_sizes(detected, demo), numbers, steps, pictures)
    status = run_bench(detected, settings, plan, json_file, force)
    if status:
        raise typer.Exit(status)


@app.command("merge-inpaint")
def merge_inpaint(
    inpaint: Annotated[Path, typer.Argument(help="An SDXL inpainting model, with 9 input channels.")],
    fine_tune: Annotated[Path, typer.Argument(help="The fine-tune to make an inpainting model for.")],
    base: Annotated[Path, typer.Argument(help="The model that both were trained from: SDXL 1.0.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Safetensors file to write.")] = Path(
        "inpainting.safetensors"
    ),
    force: options.Force = False,
) -> None:
    """Make an inpainting model for a fine-tune by add-difference: inpaint + (fine_tune - base)."""
    from server.engine.loading import merge_inpainting

    made = merge_inpainting(inpaint, fine_tune, base, output, overwrite=force)
    typer.echo(f"{made.output}: {made.summed} tensors summed, {made.copied} copied from the fine-tune")
    typer.echo("\n".join(f"  {fact}" for fact in made.detection.evidence))


app.add_typer(tokens.app, name="token")
app.add_typer(tls.app, name="tls")
for command in (pictures.inspect, pictures.verify, pictures.enhance, pictures.variations):
    app.command()(command)
