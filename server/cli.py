"""The `naiad` command: `serve` answers over HTTP, `generate` draws one request without it."""

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.errors import PipelineError
from server.catalog import load_catalog, single
from server.door import needs_token, new_token
from server.errors import ApiError
from server.served import Served, recognise
from server.settings import ConfigError, Settings, load_settings

if TYPE_CHECKING:
    from server.engine import Drawing

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


def main() -> None:
    """Run the command; what goes wrong on purpose is one line and exit status 1."""
    try:
        app()
    except (PipelineError, ConfigError, ApiError) as error:
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
    flags = {"host": host, "port": port, "weights": weights, "device": device, "dtype": dtype}
    settings = load_settings(config, os.environ, flags)
    served = chosen(settings, checkpoint, demo)
    _run_server(served, settings)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw, in NAI's grammar.")],
    checkpoint: Checkpoint = None,
    demo: Demo = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the PNG goes.")] = Path("out.png"),
    negative: Annotated[str, typer.Option(help="What to keep out.")] = "",
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
    settings = load_settings(config, os.environ, {"weights": weights, "device": device, "dtype": dtype})
    width, height = _size(size)
    parameters = {
        "negative_prompt": negative,
        "width": width,
        "height": height,
        "steps": steps,
        "scale": scale,
        "sampler": sampler,
        "noise_schedule": schedule,
        "seed": seed,
        "n_samples": samples,
    }
    _draw(chosen(settings, checkpoint, demo), settings, {"input": prompt, "parameters": parameters}, output)


def chosen(settings: Settings, checkpoint: Path | None, demo: bool) -> Served:
    """The model a command is about: the checkpoint named, the demo, or the catalogue's default."""
    if demo:
        return recognise(single(demo_checkpoint()).entry("demo"))
    if checkpoint is not None:
        return recognise(single(checkpoint).entry("any"))
    if settings.weights is not None:
        catalog = load_catalog(settings.weights)
        return recognise(catalog.entry(catalog.default))
    raise ConfigError("no model: name a checkpoint, a catalogue with --weights, or --demo")


def demo_checkpoint() -> Path:
    """The demo model's file, built where temporary files go when it is not there yet."""
    from importlib.metadata import version

    path = Path(gettempdir()) / f"naiad-demo-{version('naiad')}-{os.getuid() if hasattr(os, 'getuid') else 0}"
    file = path / "naiad-demo.safetensors"
    if not file.exists():
        from demo.checkpoint import build_demo

        typer.echo("building the demo model (it is untrained: it draws noise)", err=True)
        build_demo(file)
    return file


def _size(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    try:
        width, height = (int(side) for side in text.lower().split("x"))
    except ValueError:
        raise ConfigError(f"--size {text!r} is not like 832x1216") from None
    return width, height


def _run_server(served: Served, settings: Settings) -> None:
    import uvicorn

    from server.app import create_app
    from server.engine import Engine

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    token = settings.token or (new_token() if needs_token(settings.host) else None)
    engine = Engine(lambda: _load(served, settings), settings.engine.queue_limit)
    _announce(served, settings, token)
    # h11, because httptools loses the body of requests that offer to upgrade to h2c, as curl_cffi's do
    uvicorn.run(
        create_app(served, engine, token),
        host=settings.host,
        port=settings.port,
        http="h11",
        log_level="warning",
    )


def _load(served: Served, settings: Settings) -> "Drawing":
    from server.loading import load_pipeline

    return load_pipeline(served, settings)


def _announce(served: Served, settings: Settings, token: str | None) -> None:
    """Say what is served, where, and how to ask for a picture."""
    for fact in served.identity.evidence:
        typer.echo(f"  {fact}")
    typer.echo(f"  profile {served.profile.name}: {served.reason}")
    address = f"http://{settings.host}:{settings.port}"
    defaults = served.profile.defaults
    size = f'"width":{min(defaults.width, 512)},"height":{min(defaults.height, 768)}'
    body = f'{{"input":"1girl, smile","model":"nai-diffusion-3","parameters":{{{size},"seed":1}}}}'
    shown = "$NAIAD_TOKEN" if settings.token else token  # a token somebody set is nobody's to print
    authorization = f' -H "Authorization: Bearer {shown}"' if token else ""
    typer.echo(f"naiad listens on {address}\nA first picture, once {address}/ready says ready:\n")
    typer.echo(
        f"  curl {address}/ai/generate-image{authorization} -H 'Content-Type: application/json' "
        f"-H 'Accept: image/png' -d '{body}' -o picture.png\n"
    )


def _draw(served: Served, settings: Settings, body: Mapping[str, object], output: Path) -> None:
    """Resolve, draw and save: the server's own path without HTTP."""
    from pydantic import ValidationError

    from server.engine import Engine
    from server.pictures import encoded
    from server.progress import shown
    from server.resolve import resolve
    from server.wire import GenerateRequest

    try:
        resolved = resolve(GenerateRequest.model_validate(body), served.profile)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None
    engine = Engine(lambda: _load(served, settings))
    engine.start()
    try:
        engine.wait_ready()
        drawn = shown(engine.submit(resolved.job))
    finally:
        engine.stop()
    for index, picture in enumerate(encoded(resolved.job, drawn, served.fingerprint)):
        place = output if index == 0 else output.with_stem(f"{output.stem}_{index}")
        place.write_bytes(picture)
        typer.echo(str(place))
