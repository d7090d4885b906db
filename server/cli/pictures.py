"""The commands on image files: `naiad inspect`, `verify`, `enhance` and `variations`."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from server.cli import options
from server.cli.options import option
from server.cli.output import OutputChoice
from server.config.catalog import Catalog, choose_catalog
from server.config.settings import Settings, load_settings, signing_key_path
from server.config.toml import ConfigError


def inspect(picture: options.Picture, config: options.Config = None, as_json: options.AsJson = False) -> None:
    """Print an image's metadata and signatures; images made by NovelAI can be read too."""
    from server.picture import inspection

    result = inspection.inspect(_read_file(picture))
    checks = inspection.check_signatures(result, _read_public_key(config), None)
    if as_json:
        typer.echo(json.dumps(inspection.to_json(result, checks), indent=2))
    else:
        typer.echo(f"{inspection.format_report(result)}\n{inspection.format_signatures(checks)}")


def verify(
    picture: options.Picture,
    key: Annotated[str | None, option(help="A public key to trust (Base64).")] = None,
    config: options.Config = None,
) -> None:
    """Print who signed an image; the status is 0 if it was this server, the given key or NovelAI, else 1."""
    from server.picture import inspection

    result = inspection.inspect(_read_file(picture))
    checks = inspection.check_signatures(result, _read_public_key(config), key)
    typer.echo(inspection.format_signatures(checks))
    raise typer.Exit(0 if inspection.is_trusted(checks) else 1)


def enhance(
    picture: options.Picture,
    checkpoint: options.Checkpoint = None,
    demo: options.Demo = False,
    output: options.Output = None,
    force: options.Force = False,
    magnitude: Annotated[
        int, typer.Option(min=1, max=5, help="How much the image changes, as in NAI's Enhance.")
    ] = 3,
    strength: Annotated[float | None, option(help="Replaces the magnitude: 0 to 1.")] = None,
    noise: Annotated[float | None, option(help="Replaces the magnitude's noise: 0 to 1.")] = None,
    scale: Annotated[float, typer.Option(help="Factor for width and height.")] = 1.5,
    prompt: options.PromptOverride = None,
    seed: options.Seed = None,
    config: options.Config = None,
    weights: options.WeightsFile = None,
    prediction: options.Prediction = None,
    zsnr: options.Zsnr = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Draw a picture again, larger, as NAI's Enhance does: prompt and settings are read from its metadata."""
    from server.request.passes import enhance_change

    settings = load_settings(config, os.environ, {"device": device, "dtype": dtype})
    catalog = choose_catalog(settings, checkpoint, demo, weights, prediction, zsnr)
    change = enhance_change(magnitude, strength, noise)
    choice = OutputChoice(output, Path("enhanced.png"), force)
    _redraw(picture, catalog, settings, choice, scale, change, input=prompt, seed=seed)


def variations(
    picture: options.Picture,
    checkpoint: options.Checkpoint = None,
    demo: options.Demo = False,
    output: options.Output = None,
    force: options.Force = False,
    samples: Annotated[int, typer.Option(help="Number of images.")] = 3,
    prompt: options.PromptOverride = None,
    seed: options.Seed = None,
    config: options.Config = None,
    weights: options.WeightsFile = None,
    prediction: options.Prediction = None,
    zsnr: options.Zsnr = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Generate variations of an image, like NAI's Variations. Prompt and settings come from its metadata."""
    from server.cli.redraw import VARIATIONS

    settings = load_settings(config, os.environ, {"device": device, "dtype": dtype})
    catalog = choose_catalog(settings, checkpoint, demo, weights, prediction, zsnr)
    choice = OutputChoice(output, Path("variation.png"), force)
    _redraw(picture, catalog, settings, choice, 1.0, VARIATIONS, input=prompt, seed=seed, n_samples=samples)


def _redraw(
    picture: Path,
    catalog: Catalog,
    settings: Settings,
    output: OutputChoice,
    scale: float,
    change: tuple[float, float],
    **overrides: object,
) -> None:
    """Run img2img on an image file; `change` is strength and noise."""
    from server.cli.generate import generate_to_file
    from server.cli.redraw import build_redraw_request, warn_of_omissions
    from server.engine.model import detect_model

    # a model id says here only which syntax the prompt has
    api = settings.api.model_copy(update={"unknown_models": "map"})
    settings = settings.model_copy(update={"api": api})
    overrides["image_format"] = options.parse_format(output.path)
    data = _read_file(picture)
    body = build_redraw_request(data, scale, *change, overrides)
    for warning in warn_of_omissions(data):
        typer.echo(f"warning: {warning}", err=True)
    generate_to_file(detect_model(catalog), settings, body, output)


def _read_file(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None


def _read_public_key(config: Path | None) -> str | None:
    """Return this server's public key, or None if it has no key yet."""
    from server.picture.signature import read_key

    key = read_key(signing_key_path(load_settings(config, os.environ, {})))
    return None if key is None else key.public
