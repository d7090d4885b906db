"""The `naiad` command. Its modules are imported when they are needed, so that `--help` is there at once."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.errors import PipelineError
from server.cli import pictures as gallery
from server.cli.options import (
    AsJson,
    Checkpoint,
    Config,
    Demo,
    Device,
    Dtype,
    Output,
    Seed,
    WeightsFile,
    parse_format,
    parse_size,
)
from server.config.catalog import choose_catalog
from server.config.settings import load_settings
from server.config.toml import ConfigError
from server.errors import ApiError

app = typer.Typer(
    help="A self-hosted server for the NovelAI Diffusion V3 image API, on open SDXL weights.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command; what goes wrong on purpose is one line, and status 2 when it is the setup, else 1."""
    try:
        app()
    except ConfigError as error:
        typer.echo(f"naiad: {error}", err=True)
        sys.exit(2)
    except (PipelineError, ApiError) as error:
        typer.echo(f"naiad: {error}", err=True)
        sys.exit(1)


@app.command()
def serve(
    checkpoint: Checkpoint = None,
    demo: Demo = False,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.", show_default=False)] = None,
    config: Config = None,
    weights: WeightsFile = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Serve a model over HTTP until interrupted."""
    flags = {"host": host, "port": port, "device": device, "dtype": dtype}
    settings = load_settings(config, os.environ, flags)
    catalog = choose_catalog(settings, checkpoint, demo, weights)
    from server.cli.bootstrap import serve
    from server.engine.model import detect_model

    serve(detect_model(catalog), settings)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw, in NAI's grammar.")],
    checkpoint: Checkpoint = None,
    demo: Demo = False,
    output: Output = Path("out.png"),
    negative: Annotated[str, typer.Option(help="What to keep out; with none, the UC preset.")] = "",
    quality: Annotated[bool, typer.Option(help="Add NAI's quality tags.")] = True,
    uc_preset: Annotated[int, typer.Option(help="Which of the model's UC presets.")] = 0,
    size: Annotated[str | None, typer.Option(help="Like 832x1216.", show_default=False)] = None,
    steps: Annotated[int | None, typer.Option(show_default=False)] = None,
    scale: Annotated[float | None, typer.Option(show_default=False)] = None,
    sampler: Annotated[str | None, typer.Option(help="Like k_euler.", show_default=False)] = None,
    schedule: Annotated[str | None, typer.Option(help="Like native or karras.", show_default=False)] = None,
    seed: Seed = None,
    samples: Annotated[int | None, typer.Option(help="How many pictures.", show_default=False)] = None,
    config: Config = None,
    weights: WeightsFile = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Draw one request, on the same path as the server's."""
    settings = load_settings(config, os.environ, {"device": device, "dtype": dtype})
    width, height = parse_size(size)
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
        "image_format": parse_format(output),
    }
    catalog = choose_catalog(settings, checkpoint, demo, weights)
    from server.cli.generate import generate_to_file
    from server.engine.model import detect_model

    generate_to_file(detect_model(catalog), settings, {"input": prompt, "parameters": parameters}, output)


@app.command()
def models(
    checkpoint: Checkpoint = None,
    demo: Demo = False,
    config: Config = None,
    weights: WeightsFile = None,
    as_json: AsJson = False,
) -> None:
    """List the models there are: what each file is, how that is known, and which profile it gets."""
    settings = load_settings(config, os.environ, {})
    catalog = choose_catalog(settings, checkpoint, demo, weights)
    from server.engine.model import format_card, model_cards

    found = model_cards(catalog)
    typer.echo(json.dumps(found, indent=2) if as_json else "\n\n".join(map(format_card, found)))


@app.command()
def check(
    checkpoint: Checkpoint = None, demo: Demo = False, config: Config = None, weights: WeightsFile = None
) -> None:
    """Check the setup without loading a model: settings, presets, profiles, accounts, key and every checkpoint."""
    settings = load_settings(config, os.environ, {})
    catalog = choose_catalog(settings, checkpoint, demo, weights)
    from server.cli.bootstrap import check_setup

    for said in check_setup(catalog, settings):
        typer.echo(said)


@app.command("merge-inpaint")
def merge_inpaint(
    inpaint: Annotated[Path, typer.Argument(help="An SDXL inpainting model, with 9 channels.")],
    fine_tune: Annotated[Path, typer.Argument(help="The model that is to inpaint.")],
    base: Annotated[Path, typer.Argument(help="What both were made from: SDXL 1.0.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A safetensors file to make.")] = Path(
        "inpainting.safetensors"
    ),
) -> None:
    """Make an inpainting model for a fine-tune by add-difference: inpaint + (fine_tune - base)."""
    from server.engine.loading import merge_inpainting

    made = merge_inpainting(inpaint, fine_tune, base, output)
    typer.echo(f"{made.output}: {made.summed} tensors summed, {made.copied} copied from the fine-tune")
    typer.echo("\n".join(f"  {fact}" for fact in made.identity.evidence))


@app.command()
def account(name: Annotated[str, typer.Argument(help="Whose it is, for the file alone.")]) -> None:
    """Print an account for tokens.toml, for clients that log in with an e-mail address and a password.

    There are two keys to an address with capitals: some clients make them small first.
    """
    from server.api.access import generate_token
    from server.api.accounts import derive_access_key

    email = typer.prompt("E-mail address", err=True)
    password = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    token = generate_token()
    for key in dict.fromkeys(derive_access_key(written, password) for written in (email, email.lower())):
        fields = {"name": name, "key": key, "token": token}
        typer.echo(
            "\n".join(["[[account]]", *(f"{field} = {json.dumps(told)}" for field, told in fields.items())])
        )


for command in (gallery.inspect, gallery.verify, gallery.enhance, gallery.variations):
    app.command()(command)
