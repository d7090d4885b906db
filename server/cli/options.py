"""Command line arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from server.config.toml import ConfigError

Checkpoint = Annotated[
    Path | None, typer.Argument(help="A safetensors checkpoint or a diffusers folder.", show_default=False)
]
Demo = Annotated[bool, typer.Option("--demo", help="Use the embedded demo model: no weights, no GPU.")]
Config = Annotated[
    Path | None, typer.Option(help="Settings file (TOML), like configs/server.toml.", show_default=False)
]
WeightsFile = Annotated[
    Path | None, typer.Option(help="Model catalog (TOML), like weights.example.toml.", show_default=False)
]
Device = Annotated[
    str | None, typer.Option(help="Device: auto, cpu, cuda, cuda:1 or mps.", show_default=False)
]
Dtype = Annotated[
    str | None, typer.Option(help="Dtype: auto, float32, float16 or bfloat16.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="Image file to write: .png or .webp.")]
Seed = Annotated[int | None, typer.Option(help="Seed; random by default.", show_default=False)]
PromptOverride = Annotated[
    str | None, typer.Option("--prompt", help="Replaces the image's own prompt.", show_default=False)
]
Picture = Annotated[Path, typer.Argument(help="A PNG, WebP or JPEG file.", show_default=False)]


def parse_size(text: str | None) -> tuple[int | None, int | None]:
    """Return width and height of a text like 832x1216.

    Raises:
        ConfigError: the text has another form.
    """
    if text is None:
        return None, None
    try:
        width, height = (int(side) for side in text.lower().split("x"))
    except ValueError:
        raise ConfigError(f"--size {text!r} is not like 832x1216") from None
    return width, height


def parse_format(output: Path) -> str:
    """Return the image format of a file name: "png" or "webp".

    Raises:
        ConfigError: the name has another ending.
    """
    suffix = output.suffix.lower().removeprefix(".")
    if suffix not in ("png", "webp"):
        raise ConfigError(f"--output {str(output)!r} does not end in .png or .webp")
    return suffix
