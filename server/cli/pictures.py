"""The commands about pictures there are: reading them, and drawing on from them."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from server.cli.options import (
    AsJson,
    Checkpoint,
    Config,
    Demo,
    Device,
    Dtype,
    Output,
    Picture,
    PromptOverride,
    Seed,
    WeightsFile,
    parse_format,
)
from server.config.catalog import Catalog, choose_catalog
from server.config.settings import Settings, load_settings, signing_key_path
from server.config.toml import ConfigError


def inspect(picture: Picture, config: Config = None, as_json: AsJson = False) -> None:
    """Print what a picture says about itself, and who signed it; genuine NAI pictures too."""
    from server.picture.inspection import check_signatures, format_report, format_signatures
    from server.picture.inspection import inspect as read
    from server.picture.inspection import to_json as plain

    inspection = read(_content(picture))
    found = check_signatures(inspection, _own_key(config), None)
    if as_json:
        typer.echo(json.dumps(plain(inspection, found), indent=2))
    else:
        typer.echo(f"{format_report(inspection)}\n{format_signatures(found)}")


def verify(
    picture: Picture,
    key: Annotated[
        str | None, typer.Option(help="The public key to trust, Base64.", show_default=False)
    ] = None,
    config: Config = None,
) -> None:
    """Say who signed a picture; status 1 unless it was this server, the key given, or NovelAI."""
    from server.picture.inspection import check_signatures, format_signatures, is_trusted
    from server.picture.inspection import inspect as read

    found = check_signatures(read(_content(picture)), _own_key(config), key)
    typer.echo(format_signatures(found))
    raise typer.Exit(0 if is_trusted(found) else 1)


def enhance(
    picture: Picture,
    checkpoint: Checkpoint = None,
    demo: Demo = False,
    output: Output = Path("enhanced.png"),
    magnitude: Annotated[int, typer.Option(min=1, max=5, help="How much may change.")] = 3,
    strength: Annotated[
        float | None, typer.Option(help="In place of a magnitude.", show_default=False)
    ] = None,
    noise: Annotated[
        float | None, typer.Option(help="In place of a magnitude's.", show_default=False)
    ] = None,
    scale: Annotated[float, typer.Option(help="Of the picture's sides.")] = 1.5,
    prompt: PromptOverride = None,
    seed: Seed = None,
    config: Config = None,
    weights: WeightsFile = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Draw a picture again, larger, as NAI's Enhance does: prompt and settings are read from its metadata."""
    from server.request.passes import enhance_change

    settings = load_settings(config, os.environ, {"device": device, "dtype": dtype})
    catalog = choose_catalog(settings, checkpoint, demo, weights)
    amount = enhance_change(magnitude, strength, noise)
    _restart(picture, catalog, settings, output, scale, amount, input=prompt, seed=seed)


def variations(
    picture: Picture,
    checkpoint: Checkpoint = None,
    demo: Demo = False,
    output: Output = Path("variation.png"),
    samples: Annotated[int, typer.Option(help="How many pictures.")] = 3,
    prompt: PromptOverride = None,
    seed: Seed = None,
    config: Config = None,
    weights: WeightsFile = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Draw pictures like one there is, as NAI's Variations do: prompt and settings are read from its metadata."""
    from server.cli.redraw import VARIATIONS

    settings = load_settings(config, os.environ, {"device": device, "dtype": dtype})
    catalog = choose_catalog(settings, checkpoint, demo, weights)
    _restart(picture, catalog, settings, output, 1.0, VARIATIONS, input=prompt, seed=seed, n_samples=samples)


def _restart(
    picture: Path,
    catalog: Catalog,
    settings: Settings,
    output: Path,
    scale: float,
    change: tuple[float, float],
    **asked: object,
) -> None:
    """Draw on from a picture, by this strength and noise."""
    from server.cli.generate import generate_to_file
    from server.cli.redraw import build_redraw_request
    from server.engine.model import detect_model

    asked["image_format"] = parse_format(output)
    body = build_redraw_request(_content(picture), scale, *change, asked)
    generate_to_file(detect_model(catalog), settings, body, output)


def _content(picture: Path) -> bytes:
    try:
        return picture.read_bytes()
    except OSError as error:
        raise ConfigError(f"{picture}: {error.strerror}") from None


def _own_key(config: Path | None) -> str | None:
    """This server's public key, if it has made one."""
    from server.picture.signature import read_key

    own = read_key(signing_key_path(load_settings(config, os.environ, {})))
    return None if own is None else own.public
