"""From settings to a server that listens: `naiad serve`, and `naiad check`, which stops before listening."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from errno import EADDRINUSE
from functools import partial
from socket import AF_INET, AI_PASSIVE, SOCK_STREAM, create_server, gaierror, getaddrinfo, gethostname, socket
from typing import TYPE_CHECKING

import typer
import uvicorn

from server.api.access import AccessRules, generate_token, needs_token
from server.api.accounts import Accounts, load_accounts
from server.api.protocol import Protocol
from server.api.state import AppState
from server.app import create_app
from server.config.catalog import Catalog
from server.config.profiles import load_profiles
from server.config.resources import configs
from server.config.settings import Settings, signing_key_path
from server.config.toml import ConfigError
from server.engine.engine import Engine
from server.engine.model import ServedModel, detect_model, format_card
from server.picture.signature import open_key, read_key
from server.picture.writer import MetadataPolicy
from server.request.presets import load_presets
from server.request.resolve import RequestPolicy

if TYPE_CHECKING:
    from server.engine.engine import LoadedModel


def build_request_policy(served: ServedModel, settings: Settings) -> RequestPolicy:
    """How requests are read."""
    presets = load_presets(configs() / "presets.toml")
    return RequestPolicy(served, presets, settings.api.presets, settings.api.unknown_models)


def build_metadata_policy(served: ServedModel, settings: Settings) -> MetadataPolicy:
    """What pictures carry; with full metadata the signing key is made if there is none."""
    key = open_key(signing_key_path(settings)) if settings.metadata == "full" else None
    batching = settings.engine.batching
    return MetadataPolicy(
        served.fingerprint, key, settings.metadata, batching, served.inpainting, served.files
    )


def build_engine(served: ServedModel, settings: Settings) -> Engine:
    """The engine that will load what is served."""
    return Engine(partial(_load, served, settings), settings.engine.queue_limit)


def _load(served: ServedModel, settings: Settings) -> "LoadedModel":
    from server.engine.loading import load_runner

    return load_runner(served, settings)


def build_app_state(served: ServedModel, settings: Settings) -> AppState:
    """Everything that a request meets.

    Raises:
        ConfigError: accounts, presets or key are wrong.
    """
    accounts = Accounts() if settings.tokens is None else load_accounts(settings.tokens)
    return AppState(
        engine=build_engine(served, settings),
        policy=build_request_policy(served, settings),
        metadata=build_metadata_policy(served, settings),
        access=build_access_rules(settings, accounts),
        accounts=accounts,
        body_limit=settings.api.body_limit,
    )


def build_access_rules(settings: Settings, accounts: Accounts) -> AccessRules:
    """Who may come in; off loopback a token is made when neither settings nor accounts bring one."""
    tokens = (*(() if settings.token is None else (settings.token,)), *accounts.tokens)
    if not tokens and needs_token(settings.host):
        tokens = (generate_token(),)
    everywhere = settings.host in ("0.0.0.0", "::")  # noqa: S104 -- compared, not bound
    hosts = (*settings.api.hosts, *((gethostname(),) if everywhere else ()))
    return AccessRules(tokens, settings.host, hosts, settings.api.origins)


def serve(served: ServedModel, settings: Settings) -> None:
    """Listen until interrupted; the port is taken before any weights are read.

    Raises:
        ConfigError: the address cannot be listened on, or what `house` raises.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    own = build_app_state(served, settings)
    with bind(settings.host, settings.port) as listening:
        _announce(own, settings, listening.getsockname()[1])
        config = uvicorn.Config(
            create_app(own), http=Protocol, ws="none", log_level="warning", server_header=False
        )
        with suppress(KeyboardInterrupt):  # uvicorn raises it again when it has stopped
            uvicorn.Server(config).run([listening])


def bind(host: str, port: int) -> socket:
    """A socket that listens, by IPv4 where a name has both."""
    try:
        found = sorted(
            getaddrinfo(host, port, type=SOCK_STREAM, flags=AI_PASSIVE), key=lambda one: one[0] != AF_INET
        )
        family, _, _, _, address = found[0]
        return create_server(address, family=family)
    except gaierror:
        raise ConfigError(f"host = {host!r} is no address of this machine") from None
    except OSError as error:
        reason = "another program listens there" if error.errno == EADDRINUSE else error.strerror
        raise ConfigError(f"port = {port} on {host} cannot be taken: {reason}") from None


def _announce(own: AppState, settings: Settings, port: int) -> None:
    """Say what is served, where, who signs, and how to ask for a picture."""
    served = own.policy.served
    typer.echo(format_card(served.card()))
    if own.metadata.key is not None:
        typer.echo(f"pictures are signed by the key {own.metadata.key.public} ({signing_key_path(settings)})")
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104 -- not bound
    address = f"http://{name if ':' not in name or name[0] == '[' else f'[{name}]'}:{port}"
    token = None if not own.access.tokens else "$NAIAD_TOKEN" if settings.token else own.access.tokens[0]
    typer.echo(f"naiad listens on {address}\nA first picture, once {address}/ready says ready:\n")
    typer.echo(f"  {_first_picture(served, address, token)}\n")


def _first_picture(served: ServedModel, address: str, token: str | None) -> str:
    """A command that gets a picture."""
    defaults = served.profile.defaults
    size = f'"width":{min(defaults.width, 512)},"height":{min(defaults.height, 768)}'
    body = f'{{"input":"1girl, smile","model":"nai-diffusion-3","parameters":{{{size},"seed":1}}}}'
    authorization = f' -H "Authorization: Bearer {token}"' if token else ""
    return (
        f"curl {address}/ai/generate-image{authorization} -H 'Content-Type: application/json' "
        f"-H 'Accept: image/png' -d '{body}' -o picture.png"
    )


def check_setup(catalog: Catalog, settings: Settings) -> Iterator[str]:
    """Look at everything a server needs, one line for each; the first thing that is wrong is raised.

    Raises:
        ConfigError: a file sets something wrongly, or is not there.
        WeightsError: a checkpoint cannot serve.
    """
    yield f"profiles: {len(load_profiles(configs() / 'profiles'))}"
    yield f"presets: texts for {len(load_presets(configs() / 'presets.toml').models)} models"
    if settings.tokens is not None:
        yield f"accounts: {len(load_accounts(settings.tokens).account)}"
    place = signing_key_path(settings)
    key = read_key(place)
    yield f"signing key: {place}, {'made at the first start' if key is None else key.public}"
    for model in catalog.distinct():
        served = detect_model(catalog, model)
        yield f"{model}: {served.entry.path.name}, {served.detection.family}, profile {served.profile.name}"
    if catalog.upscaler is not None:
        from server.engine.loading import read_upscaler_scale

        yield f"upscaler: {catalog.upscaler.name}, {read_upscaler_scale(catalog.upscaler)} times"
    yield "all is well"
