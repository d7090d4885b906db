"""`naiad serve`: bind the port, print how to reach the server, and run it."""

import logging
import os
import ssl
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from threading import Thread
from time import sleep

import typer

from server.api.lifecycle import Server, build_server, stop_on_hangup
from server.app import AppState, create_app
from server.cli.bootstrap import build_app_state
from server.cli.listeners import bind, format_address
from server.cli.logs import configure_logging
from server.cli.status import FAILED, WRONG_SETUP
from server.config.settings import Settings, listen_port, signing_key_path, tls_folder
from server.engine.engine import Engine
from server.engine.model import ServedModel, format_card
from server.tls.certificates import Certificates
from server.tls.hosts_file import REDIRECTED

log = logging.getLogger("naiad")


def run_server(
    model: ServedModel,
    settings: Settings,
    others: tuple[ServedModel, ...] = (),
    problems: Mapping[str, str] | None = None,
) -> None:
    """Serve models until interrupted, or until the engine fails. The port is bound before the weights are read.

    Raises `ConfigError` if an address cannot be bound, or the accounts, the presets, the signing key or the certificate
    are invalid.
    """
    configure_logging(settings.log_format)
    state = build_app_state(model, settings, others, problems)
    context = _open_certificate(settings) if settings.tls else None
    with ExitStack() as stack:
        listeners = [stack.enter_context(listener) for listener in bind(settings.host, listen_port(settings))]
        announce(model, state, settings, listeners[0].getsockname()[1])
        bounds = settings.api.connections, settings.drain_seconds
        server = build_server(create_app(state), *bounds, context, state.metrics.count_refusal)
        stop_on_hangup()
        if settings.engine.exit_on_failure:
            Thread(target=stop_after_failure, args=(server, state.engine), daemon=True).start()
        server.run(listeners)
    if settings.engine.exit_on_failure and state.engine.failure is not None:
        server.exit_status = find_status(state.engine)
    if (
        state.engine.is_running
    ):  # a model that still loads, or a step that hangs; without them it would not end
        os._exit(server.exit_status)
    if server.exit_status:
        raise typer.Exit(server.exit_status)


def stop_after_failure(server: Server, engine: Engine) -> None:
    """Wait until the engine has ended, and stop the server if it has failed."""
    if engine.wait_end() is None:
        return
    server.exit_status = find_status(engine)
    log.critical(
        "the server stops with status %d (engine.exit_on_failure = false keeps it running)",
        server.exit_status,
    )
    while not server.started:  # a server that is asked to stop before that does not shut down its application
        sleep(0.01)
    server.should_exit = True


def find_status(engine: Engine) -> int:
    """Return the exit status of a server whose engine has failed."""
    return FAILED if engine.wrong_setup is None else WRONG_SETUP


def _open_certificate(settings: Settings) -> ssl.SSLContext:
    """Return the context of the server's certificate, and log a warning if it expires soon."""
    certificates = Certificates(tls_folder(settings))
    warning = certificates.check(datetime.now(UTC))
    if warning is not None:
        log.warning(warning)
    return certificates.build_context()


def announce(model: ServedModel, state: AppState, settings: Settings, port: int) -> None:
    """Print the model, the signing key, the addresses, and a command that requests an image."""
    typer.echo(format_card(model.card()))
    key = state.metadata.key
    if key is not None:
        typer.echo(f"images are signed with the key {key.public} ({signing_key_path(settings)})")
    if settings.archive is not None:
        typer.echo(f"every picture is kept in {settings.archive}")
    addresses = [format_address(host, port, "https" if settings.tls else "http") for host in settings.host]
    typer.echo(f"naiad listens on {' and '.join(addresses)}")
    if settings.tls:
        typer.echo(f"it is {' and '.join(REDIRECTED)} for programs that `naiad tls install` has prepared")
    if settings.tokens is not None and not state.access.accounts.account:
        typer.echo(f"{settings.tokens} lists no account yet; `naiad token add NAME` makes one")
    if settings.token is None and state.access.tokens:
        typer.echo(f"clients need this token, made for this start: {state.access.tokens[0]}")
    typer.echo(f"Get a first image as soon as {addresses[0]}/ready returns 200:\n")
    target = _build_tls_target(settings, port) if settings.tls else addresses[0]
    typer.echo(f"  {_build_curl_command(model, target, state.access.has_tokens)}\n")


def _build_tls_target(settings: Settings, port: int) -> str:
    """Return the options and the address by which curl reaches the server under its certificate's name."""
    name, authority = REDIRECTED[0], Certificates(tls_folder(settings)).authority
    address = format_address(settings.host[0], port).removeprefix("http://").rpartition(":")[0]
    suffix = "" if port == 443 else f":{port}"
    return f"--cacert '{authority}' --resolve {name}:{port}:{address} https://{name}{suffix}"


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
