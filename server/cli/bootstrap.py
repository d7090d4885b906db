"""Builders from settings to the server's objects: engine, request policy, metadata policy, access rules, app state."""

from functools import partial
from socket import gethostname
from typing import TYPE_CHECKING

from server.api.access import AccessRules, generate_token, needs_token
from server.api.accounts import Accounts, load_accounts
from server.api.memory import memory_for_bodies
from server.app import AppState
from server.cli.listeners import is_unspecified
from server.config.resources import configs
from server.config.settings import Settings, signing_key_path
from server.config.toml import ConfigError
from server.engine.engine import Engine
from server.engine.model import ServedModel
from server.picture.signature import open_key
from server.picture.writer import MetadataPolicy
from server.request.presets import load_presets
from server.request.resolve import RequestPolicy
from server.tags.library import TagLibrary, read_known_tags, read_tags

if TYPE_CHECKING:
    from server.engine.engine import LoadedModel


def build_request_policy(model: ServedModel, settings: Settings) -> RequestPolicy:
    """Build the policy by which requests are resolved."""
    presets = load_presets(configs() / "presets.toml")
    return RequestPolicy(model, presets, settings.api.presets, settings.api.unknown_models)


def build_metadata_policy(model: ServedModel, settings: Settings) -> MetadataPolicy:
    """Build the policy for the metadata of images; full metadata creates the signing key if it does not exist."""
    key = open_key(signing_key_path(settings)) if settings.metadata == "full" else None
    batching = settings.engine.batching
    return MetadataPolicy(model.fingerprint, key, settings.metadata, batching, model.inpainting, model.files)


def build_engine(model: ServedModel, settings: Settings) -> Engine:
    """Build an engine that loads the model when it is started."""
    return Engine(partial(_load_model, model, settings), settings.engine.queue_limit)


def _load_model(model: ServedModel, settings: Settings) -> "LoadedModel":
    from server.engine.loading import load_runner

    return load_runner(model, settings)


def build_access_rules(settings: Settings, accounts: Accounts) -> AccessRules:
    """Build the access rules; off loopback a token is generated if neither settings nor accounts have one."""
    tokens = (*(() if settings.token is None else (settings.token,)), *accounts.tokens)
    if not tokens and any(map(needs_token, settings.host)):
        tokens = (generate_token(),)
    own_name = (gethostname().lower(),) if any(map(is_unspecified, settings.host)) else ()
    hosts = (*settings.api.hosts, *own_name)
    return AccessRules(tokens, settings.host, hosts, settings.api.origins)


def check_memory(settings: Settings) -> None:
    """Raise `ConfigError` if the memory for requests does not suffice for one body of the largest size."""
    api = settings.api
    least = api.memory_limit - memory_for_bodies(api.memory_limit, api.body_limit) + api.body_limit
    if api.memory_limit < least:
        reason = f"too small for bodies of api.body_limit = {api.body_limit} MiB; at least {least}"
        raise ConfigError(f"api.memory_limit = {api.memory_limit}: {reason}")


def build_tag_library(settings: Settings) -> TagLibrary:
    """Read the list of tags; raise `ConfigError` if it is invalid. The library's thread does the rest."""
    read = read_known_tags if settings.tags is None else read_tags(settings.tags)
    return TagLibrary(read)


def build_app_state(model: ServedModel, settings: Settings) -> AppState:
    """Build the application's state; raise `ConfigError` if accounts, presets or signing key are invalid."""
    check_memory(settings)
    accounts = Accounts() if settings.tokens is None else load_accounts(settings.tokens)
    return AppState(
        engine=build_engine(model, settings),
        policy=build_request_policy(model, settings),
        metadata=build_metadata_policy(model, settings),
        access=build_access_rules(settings, accounts),
        accounts=accounts,
        tags=build_tag_library(settings),
        zip_type=settings.api.zip_type,
        body_limit=settings.api.body_limit,
        memory_limit=settings.api.memory_limit,
    )
