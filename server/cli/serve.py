"""`naiad serve`: bind the port, print how to reach the server, and run it."""

import os
from contextlib import suppress
from errno import EADDRINUSE
from socket import AF_INET, AI_PASSIVE, SOCK_STREAM, create_server, gaierror, getaddrinfo, socket

import typer

from server.api.lifecycle import build_server, stop_on_hangup
from server.app import AppState, create_app
from server.cli.bootstrap import build_app_state
from server.cli.logs import configure_logging
from server.config.settings import Settings, signing_key_path
from server.config.toml import ConfigError
from server.engine.model import ServedModel, format_card


def run_server(model: ServedModel, settings: Settings) -> None:
    """Serve a model until interrupted. The port is bound before the weights are read.

    Raises `ConfigError` if the address cannot be bound, or the accounts, the presets or the signing key are invalid.
    """
    configure_logging()
    state = build_app_state(model, settings)
    with bind(settings.host, settings.port) as listener:
        _announce(model, state, settings, listener.getsockname()[1])
        server = build_server(create_app(state), settings.api.connections, settings.drain_seconds)
        stop_on_hangup(server)
        with suppress(KeyboardInterrupt):  # uvicorn raises it again after it has stopped
            server.run([listener])
    if state.engine.is_running:  # a model that still loads; ending the interpreter around it would crash
        os._exit(0)


def bind(host: str, port: int) -> socket:
    """Return a listening socket, or raise `ConfigError`; a name with both kinds of address is bound on IPv4."""
    try:
        addresses = getaddrinfo(host, port, type=SOCK_STREAM, flags=AI_PASSIVE)
        family, _, _, _, address = min(addresses, key=lambda one: one[0] != AF_INET)
        return create_server(address, family=family)
    except gaierror:
        raise ConfigError(f"host = {host!r} is not an address of this machine") from None
    except OSError as error:
        reason = "another program listens there" if error.errno == EADDRINUSE else error.strerror
        raise ConfigError(f"port = {port} on {host} cannot be used: {reason}") from None


def _announce(model: ServedModel, state: AppState, settings: Settings, port: int) -> None:
    """Print the model, the signing key, the address, and a command that requests an image."""
    typer.echo(format_card(model.card()))
    key = state.metadata.key
    if key is not None:
        typer.echo(f"images are signed with the key {key.public} ({signing_key_path(settings)})")
    address = _format_address(settings.host, port)
    token = None if not state.access.tokens else "$NAIAD_TOKEN" if settings.token else state.access.tokens[0]
    typer.echo(f"naiad listens on {address}\nGet a first image as soon as {address}/ready returns 200:\n")
    typer.echo(f"  {_build_curl_command(model, address, token)}\n")


def _format_address(host: str, port: int) -> str:
    """Return the URL under which this machine reaches the server."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- not bound
    return f"http://{f'[{name}]' if ':' in name else name}:{port}"


def _build_curl_command(model: ServedModel, address: str, token: str | None) -> str:
    defaults = model.profile.defaults
    size = f'"width":{min(defaults.width, 512)},"height":{min(defaults.height, 768)}'
    body = f'{{"input":"1girl, smile","model":"nai-diffusion-3","parameters":{{{size},"seed":1}}}}'
    authorization = f' -H "Authorization: Bearer {token}"' if token else ""
    return (
        f"curl {address}/ai/generate-image{authorization} -H 'Content-Type: application/json' "
        f"-H 'Accept: image/png' -d '{body}' -o picture.png"
    )
