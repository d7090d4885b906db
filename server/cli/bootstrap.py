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

from server.api.access import Door, needs_token, new_token
from server.api.accounts import Accounts, load_accounts
from server.api.protocol import Protocol
from server.app import House, create_app
from server.config.catalog import Catalog
from server.config.profiles import load_profiles
from server.config.resources import configs
from server.config.settings import Settings, signing_key
from server.config.toml import ConfigError
from server.engine.engine import Engine
from server.engine.model import Served, described, recognise
from server.picture.signature import open_key, read_key
from server.picture.writer import Imprint
from server.request.presets import load_presets
from server.request.resolve import Policy

if TYPE_CHECKING:
    from server.engine.engine import Drawing


def policy(served: Served, settings: Settings) -> Policy:
    """How requests are read."""
    presets = load_presets(configs() / "presets.toml")
    return Policy(served, presets, settings.api.presets, settings.api.unknown_models)


def imprint(served: Served, settings: Settings) -> Imprint:
    """What pictures carry; with full metadata the signing key is made if there is none."""
    key = open_key(signing_key(settings)) if settings.metadata == "full" else None
    batching = settings.engine.batching
    return Imprint(served.fingerprint, key, settings.metadata, batching, served.inpainting, served.files)


def engine(served: Served, settings: Settings) -> Engine:
    """The engine that will load what is served."""
    return Engine(partial(_load, served, settings), settings.engine.queue_limit)


def _load(served: Served, settings: Settings) -> "Drawing":
    from server.engine.loading import load_studio

    return load_studio(served, settings)


def house(served: Served, settings: Settings) -> House:
    """Everything that a request meets.

    Raises:
        ConfigError: accounts, presets or key are wrong.
    """
    accounts = Accounts() if settings.tokens is None else load_accounts(settings.tokens)
    return House(
        engine=engine(served, settings),
        policy=policy(served, settings),
        imprint=imprint(served, settings),
        door=door(settings, accounts),
        accounts=accounts,
        body_limit=settings.api.body_limit,
    )


def door(settings: Settings, accounts: Accounts) -> Door:
    """Who may come in; off loopback a token is made when neither settings nor accounts bring one."""
    tokens = (*(() if settings.token is None else (settings.token,)), *accounts.tokens)
    if not tokens and needs_token(settings.host):
        tokens = (new_token(),)
    everywhere = settings.host in ("0.0.0.0", "::")  # noqa: S104 -- compared, not bound
    hosts = (*settings.api.hosts, *((gethostname(),) if everywhere else ()))
    return Door(tokens, settings.host, hosts, settings.api.origins)


def run(served: Served, settings: Settings) -> None:
    """Listen until interrupted; the port is taken before any weights are read.

    Raises:
        ConfigError: the address cannot be listened on, or what `house` raises.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    own = house(served, settings)
    with bound(settings.host, settings.port) as listening:
        _announce(own, settings, listening.getsockname()[1])
        config = uvicorn.Config(
            create_app(own), http=Protocol, ws="none", log_level="warning", server_header=False
        )
        with suppress(KeyboardInterrupt):  # uvicorn raises it again when it has stopped
            uvicorn.Server(config).run([listening])


def bound(host: str, port: int) -> socket:
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


def _announce(own: House, settings: Settings, port: int) -> None:
    """Say what is served, where, who signs, and how to ask for a picture."""
    served = own.policy.served
    typer.echo(described(served.card()))
    if own.imprint.key is not None:
        typer.echo(f"pictures are signed by the key {own.imprint.key.public} ({signing_key(settings)})")
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104 -- not bound
    address = f"http://{name if ':' not in name or name[0] == '[' else f'[{name}]'}:{port}"
    token = None if not own.door.tokens else "$NAIAD_TOKEN" if settings.token else own.door.tokens[0]
    typer.echo(f"naiad listens on {address}\nA first picture, once {address}/ready says ready:\n")
    typer.echo(f"  {_first_picture(served, address, token)}\n")


def _first_picture(served: Served, address: str, token: str | None) -> str:
    """A command that gets a picture."""
    defaults = served.profile.defaults
    size = f'"width":{min(defaults.width, 512)},"height":{min(defaults.height, 768)}'
    body = f'{{"input":"1girl, smile","model":"nai-diffusion-3","parameters":{{{size},"seed":1}}}}'
    authorization = f' -H "Authorization: Bearer {token}"' if token else ""
    return (
        f"curl {address}/ai/generate-image{authorization} -H 'Content-Type: application/json' "
        f"-H 'Accept: image/png' -d '{body}' -o picture.png"
    )


def checks(catalog: Catalog, settings: Settings) -> Iterator[str]:
    """Look at everything a server needs, one line for each; the first thing that is wrong is raised.

    Raises:
        ConfigError: a file sets something wrongly, or is not there.
        WeightsError: a checkpoint cannot serve.
    """
    yield f"profiles: {len(load_profiles(configs() / 'profiles'))}"
    yield f"presets: texts for {len(load_presets(configs() / 'presets.toml').models)} models"
    if settings.tokens is not None:
        yield f"accounts: {len(load_accounts(settings.tokens).account)}"
    place = signing_key(settings)
    key = read_key(place)
    yield f"signing key: {place}, {'made at the first start' if key is None else key.public}"
    for model in catalog.distinct():
        served = recognise(catalog, model)
        yield f"{model}: {served.entry.path.name}, {served.identity.family}, profile {served.profile.name}"
    if catalog.upscaler is not None:
        from server.engine.loading import enlarges

        yield f"upscaler: {catalog.upscaler.name}, {enlarges(catalog.upscaler)} times"
    yield "all is well"
