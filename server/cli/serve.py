"""`naiad serve`: bind the port, print how to reach the server, and run it."""

import logging
import os
from contextlib import ExitStack, suppress
from threading import Thread
from time import sleep

import typer
import uvicorn

from server.api.lifecycle import build_server, stop_on_hangup
from server.app import AppState, create_app
from server.cli.bootstrap import build_app_state
from server.cli.listeners import bind, format_address
from server.cli.logs import configure_logging
from server.config.settings import Settings, signing_key_path
from server.engine.engine import Engine
from server.engine.model import ServedModel, format_card

log = logging.getLogger("naiad")
FAILURE_STATUS = 3
"""Exit status after the model could not be loaded or the device has failed."""


def run_server(model: ServedModel, settings: Settings) -> None:
    """Serve a model until interrupted, or until its engine fails. The port is bound before the weights are read.

    Raises `ConfigError` if an address cannot be bound, or the accounts, the presets or the signing key are invalid.
    """
    configure_logging()
    state = build_app_state(model, settings)
    with ExitStack() as stack:
        listeners = [stack.enter_context(listener) for listener in bind(settings.host, settings.port)]
        _announce(model, state, settings, listeners[0].getsockname()[1])
        server = build_server(create_app(state), settings.api.connections, settings.drain_seconds)
        stop_on_hangup()
        if settings.engine.exit_on_failure:
            Thread(target=stop_after_failure, args=(server, state.engine), daemon=True).start()
        with suppress(KeyboardInterrupt):  # uvicorn raises it again after it has stopped
            server.run(listeners)
    has_failed = settings.engine.exit_on_failure and state.engine.failure is not None
    if state.engine.is_running:  # a model that still loads; ending the interpreter around it would crash
        os._exit(FAILURE_STATUS if has_failed else 0)
    if has_failed:
        raise typer.Exit(FAILURE_STATUS)


def stop_after_failure(server: uvicorn.Server, engine: Engine) -> None:
    """Wait until the engine has ended, and stop the server if it has failed."""
    if engine.wait_end() is None:
        return
    log.critical(
        "the server stops with status %d (engine.exit_on_failure = false keeps it running)", FAILURE_STATUS
    )
    while not server.started:  # a server that is asked to stop before that does not shut down its application
        sleep(0.01)
    server.should_exit = True


def _announce(model: ServedModel, state: AppState, settings: Settings, port: int) -> None:
    """Print the model, the signing key, the addresses, and a command that requests an image."""
    typer.echo(format_card(model.card()))
    key = state.metadata.key
    if key is not None:
        typer.echo(f"images are signed with the key {key.public} ({signing_key_path(settings)})")
    addresses = [format_address(host, port) for host in settings.host]
    typer.echo(f"naiad listens on {' and '.join(addresses)}")
    if settings.tokens is not None and not state.access.accounts.account:
        typer.echo(f"{settings.tokens} lists no account yet; `naiad token add NAME` makes one")
    if settings.token is None and state.access.tokens:
        typer.echo(f"clients need this token, made for this start: {state.access.tokens[0]}")
    typer.echo(f"Get a first image as soon as {addresses[0]}/ready returns 200:\n")
    typer.echo(f"  {_build_curl_command(model, addresses[0], state.access.has_tokens)}\n")


def _build_curl_command(model: ServedModel, address: str, needs_token: bool) -> str:
    """Return a command that requests an image; it never shows a token, because output is often kept in logs."""
    defaults = model.profile.defaults
    size = f'"width":{min(defaults.width, 512)},"height":{min(defaults.height, 768)}'
    body = f'{{"input":"1girl, smile","model":"nai-diffusion-3","parameters":{{{size},"seed":1}}}}'
    authorization = ' -H "Authorization: Bearer $NAIAD_TOKEN"' if needs_token else ""
    return (
        f"curl {address}/ai/generate-image{authorization} -H 'Content-Type: application/json' "
        f"-H 'Accept: image/png' -d '{body}' -o picture.png"
    )
