"""Command line arguments and options that several commands share."""

import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from pipelines.types import PredictionType, Size
from server.config.reasons import describe_number
from server.config.toml import ConfigError
from server.errors import Rejected

MOST_CONCURRENT = 64
"""Pictures that `naiad bench` asks for at a time."""
OPTIONS = {
    "width": "--size",
    "height": "--size",
    "steps": "--steps",
    "scale": "--scale",
    "sampler": "--sampler",
    "noise_schedule": "--schedule",
    "n_samples": "--samples",
    "controls": "--control",
    "strength": "--strength",
    "noise": "--noise",
}
"""The options by which commands set the parameters of a request."""
option = partial(typer.Option, show_default=False)
Checkpoint = Annotated[
    Path | None, typer.Argument(help="A safetensors checkpoint or a diffusers folder.", show_default=False)
]
Demo = Annotated[bool, typer.Option("--demo", help="Use the embedded demo model: no weights, no GPU.")]
Config = Annotated[Path | None, option(help="Settings file (TOML), like configs/server.toml.")]
WeightsFile = Annotated[Path | None, option(help="Model catalog (TOML), like weights.example.toml.")]
Model = Annotated[str | None, option("--model", help="Id of the catalog's model; by default its default.")]
Device = Annotated[str | None, option(help="Device: auto, cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[str | None, option(help="Dtype: auto, float32, float16 or bfloat16.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Output = Annotated[
    Path | None,
    option("-o", "--output", help="Image file to write, .png or .webp; by default a free name."),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")]
Prediction = Annotated[
    PredictionType | None,
    option(help="What the checkpoint's network predicts; by default read from the file."),
]
Zsnr = Annotated[
    bool | None,
    option("--zsnr/--no-zsnr", help="Whether it has zero terminal SNR; by default read from the file."),
]
Controls = Annotated[
    list[str] | None,
    option(
        "--control",
        metavar="NAME=FILE[:STRENGTH]",
        help="ControlNet of the catalog and its map; may be repeated.",
    ),
]
Seed = Annotated[int | None, option(help="Seed; random by default.")]
PromptOverride = Annotated[str | None, option("--prompt", help="Replaces the image's own prompt.")]
Picture = Annotated[Path, typer.Argument(help="A PNG, WebP or JPEG file.", show_default=False)]


class Commands(TyperGroup):
    """Commands that refuse a flag's number as the settings do, because typer shows pydantic's text."""

    def invoke(self, ctx: Any) -> object:  # noqa: ANN401 -- typer's own class for it is private
        """Run a command; raise `ConfigError` if a number is not one, or out of its range."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            if error.param is None or not isinstance(error.__cause__, ValidationError):
                raise
            flag, first = error.param.opts[0], error.__cause__.errors()[0]
            is_whole = not first["type"].startswith("float")
            limits = {
                "minimum": getattr(error.param, "min", None),
                "maximum": getattr(error.param, "max", None),
            }
            schema = {name: limit for name, limit in limits.items() if limit is not None}
            allowed = describe_number({"type": "integer" if is_whole else "number", **schema})
            raise ConfigError(f"{flag} = {first['input']}: should be {allowed}") from None


def parse_size(text: str, flag: str = "--size") -> Size:
    """Return width and height of a text like 832x1216, or raise `ConfigError`."""
    try:
        width, height = (int(side) for side in text.lower().split("x"))
    except ValueError:
        raise ConfigError(f"{flag} {text!r} is not like 832x1216") from None
    return width, height


def parse_sizes(text: str) -> tuple[Size, ...]:
    """Return the sizes of a text like 832x1216,512x768, each once, or raise `ConfigError`."""
    return tuple(dict.fromkeys(parse_size(part.strip(), "--sizes") for part in text.split(",")))


def parse_concurrency(text: str) -> tuple[int, ...]:
    """Return the numbers of a text like 1,4, each once, or raise `ConfigError`."""
    numbers: dict[int, None] = {}
    for part in text.split(","):
        if not part.strip().isdecimal() or not 1 <= int(part) <= MOST_CONCURRENT:
            reason = f"{part.strip()!r} is not a whole number from 1 to {MOST_CONCURRENT}"
            raise ConfigError(f"--concurrency {text!r}: {reason}; write numbers like 1,4")
        numbers[int(part)] = None
    return tuple(numbers)


def parse_format(output: Path) -> str:
    """Return the image format of a file name, "png" or "webp", or raise `ConfigError`."""
    if output == Path():  # what becomes of an empty text too
        raise ConfigError("--output names no file; write one that ends in .png or .webp")
    if output.is_dir():
        raise ConfigError(f"--output {str(output)!r} is a folder; name a file in it, ending in .png or .webp")
    suffix = output.suffix.lower().removeprefix(".")
    if suffix not in ("png", "webp"):
        raise ConfigError(f"--output {str(output)!r} does not end in .png or .webp")
    return suffix


def parse_control(text: str) -> dict[str, object]:
    """Return an entry of `parameters.controls` from a text like hed=lines.png:0.8, or raise `ConfigError`."""
    match = re.fullmatch(r"([^=]+)=(.+?)(?::(-?[\d.]+))?", text)
    if match is None:
        raise ConfigError(f"--control {text!r} is not like hed=lines.png or hed=lines.png:0.8")
    name, file, strength = match.groups()
    try:
        image = Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"--control {text!r}: {file}: {error.strerror}") from None
    return {"model": name, "image": image, "strength": strength}


def name_option(error: Rejected) -> str:
    """Return the message of a request that is refused, with the command's option in place of the request's field."""
    name = re.split(r"[.\[]", error.field.removeprefix("parameters."))[0]
    return f"{OPTIONS[name]}: {error.reason}" if name in OPTIONS else str(error)
