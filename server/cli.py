"""The `naiad` command. Its modules are imported when they are needed, so that `--help` is there at once."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.errors import PipelineError
from server.catalog import chosen
from server.errors import ApiError
from server.settings import load_settings, signing_key
from server.toml import ConfigError

app = typer.Typer(
    help="A self-hosted server for the NovelAI Diffusion V3 image API, on open SDXL weights.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Checkpoint = Annotated[
    Path | None, typer.Argument(help="A safetensors checkpoint, or a diffusers folder.", show_default=False)
]
Demo = Annotated[bool, typer.Option("--demo", help="Use the small embedded model: no weights, no GPU.")]
Config = Annotated[
    Path | None, typer.Option(help="A TOML file like configs/server.toml.", show_default=False)
]
WeightsFile = Annotated[
    Path | None, typer.Option(help="A catalogue like weights.example.toml.", show_default=False)
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", show_default=False)]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, float16 or bfloat16.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Picture = Annotated[Path, typer.Argument(help="A PNG, WebP or JPEG file.", show_default=False)]


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
    catalog = chosen(settings, checkpoint, demo, weights)
    from server.served import recognise
    from server.serving import run

    run(recognise(catalog), settings)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw, in NAI's grammar.")],
    checkpoint: Checkpoint = None,
    demo: Demo = False,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where the picture goes: .png or .webp.")
    ] = Path("out.png"),
    negative: Annotated[str, typer.Option(help="What to keep out; with none, the UC preset.")] = "",
    quality: Annotated[bool, typer.Option(help="Add NAI's quality tags.")] = True,
    uc_preset: Annotated[int, typer.Option(help="Which of the model's UC presets.")] = 0,
    size: Annotated[str | None, typer.Option(help="Like 832x1216.", show_default=False)] = None,
    steps: Annotated[int | None, typer.Option(show_default=False)] = None,
    scale: Annotated[float | None, typer.Option(show_default=False)] = None,
    sampler: Annotated[str | None, typer.Option(help="Like k_euler.", show_default=False)] = None,
    schedule: Annotated[str | None, typer.Option(help="Like native or karras.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(show_default=False)] = None,
    samples: Annotated[int | None, typer.Option(help="How many pictures.", show_default=False)] = None,
    config: Config = None,
    weights: WeightsFile = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Draw one request, on the same path as the server's."""
    settings = load_settings(config, os.environ, {"device": device, "dtype": dtype})
    width, height = _size(size)
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
        "image_format": _image_format(output),
    }
    catalog = chosen(settings, checkpoint, demo, weights)
    from server.drawing import draw
    from server.served import recognise

    draw(recognise(catalog), settings, {"input": prompt, "parameters": parameters}, output)


def _size(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    try:
        width, height = (int(side) for side in text.lower().split("x"))
    except ValueError:
        raise ConfigError(f"--size {text!r} is not like 832x1216") from None
    return width, height


def _image_format(output: Path) -> str:
    suffix = output.suffix.lower().removeprefix(".")
    if suffix not in ("png", "webp"):
        raise ConfigError(f"--output {str(output)!r} does not end in .png or .webp")
    return suffix


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
    catalog = chosen(settings, checkpoint, demo, weights)
    from server.served import cards, described

    found = cards(catalog)
    typer.echo(json.dumps(found, indent=2) if as_json else "\n\n".join(map(described, found)))


@app.command()
def check(
    checkpoint: Checkpoint = None, demo: Demo = False, config: Config = None, weights: WeightsFile = None
) -> None:
    """Check the setup without loading a model: settings, presets, profiles, accounts, key and every checkpoint."""
    settings = load_settings(config, os.environ, {})
    catalog = chosen(settings, checkpoint, demo, weights)
    from server.serving import checks

    for said in checks(catalog, settings):
        typer.echo(said)


@app.command()
def inspect(picture: Picture, config: Config = None, as_json: AsJson = False) -> None:
    """Print what a picture says about itself, and who signed it; genuine NAI pictures too."""
    from server.inspection import as_json as plain
    from server.inspection import inspect as read
    from server.inspection import report, statement, verdicts

    inspection = read(_content(picture))
    found = verdicts(inspection, _own_key(config), None)
    if as_json:
        typer.echo(json.dumps(plain(inspection, found), indent=2))
    else:
        typer.echo(f"{report(inspection)}\n{statement(found)}")


@app.command()
def verify(
    picture: Picture,
    key: Annotated[
        str | None, typer.Option(help="The public key to trust, Base64.", show_default=False)
    ] = None,
    config: Config = None,
) -> None:
    """Say who signed a picture; status 1 unless it was this server, the key given, or NovelAI."""
    from server.inspection import inspect as read
    from server.inspection import statement, trusted, verdicts

    found = verdicts(read(_content(picture)), _own_key(config), key)
    typer.echo(statement(found))
    raise typer.Exit(0 if trusted(found) else 1)


@app.command()
def account(name: Annotated[str, typer.Argument(help="Whose it is, for the file alone.")]) -> None:
    """Print an account for tokens.toml, for clients that log in with an e-mail address and a password.

    There are two keys to an address with capitals: some clients make them small first.
    """
    from server.accesskey import access_key
    from server.door import new_token

    email = typer.prompt("E-mail address", err=True)
    password = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    token = new_token()
    for key in dict.fromkeys(access_key(written, password) for written in (email, email.lower())):
        fields = {"name": name, "key": key, "token": token}
        typer.echo(
            "\n".join(["[[account]]", *(f"{field} = {json.dumps(told)}" for field, told in fields.items())])
        )


def _content(picture: Path) -> bytes:
    try:
        return picture.read_bytes()
    except OSError as error:
        raise ConfigError(f"{picture}: {error.strerror}") from None


def _own_key(config: Path | None) -> str | None:
    """This server's public key, if it has made one."""
    from server.signature import read_key

    own = read_key(signing_key(load_settings(config, os.environ, {})))
    return None if own is None else own.public
