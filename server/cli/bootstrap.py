"""Builders from settings to the server's objects: engine, request policy, metadata policy, access rules, app state."""

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from secrets import token_bytes
from socket import gethostname
from typing import TYPE_CHECKING

from pipelines.weights.prefetch import prefetch
from server.api.access import AccessRules, needs_token
from server.api.accounts import AccountsFile
from server.api.credentials import generate_token
from server.api.memory import memory_for_bodies
from server.api.tracing import open_tracing
from server.app import AppState
from server.archive.archive import Archive
from server.cli.listeners import is_unspecified
from server.config.resources import configs
from server.config.settings import Settings, read_lossy_options, signing_key_path
from server.config.toml import ConfigError
from server.director.network import load_networks
from server.director.toolbox import Toolbox
from server.engine.engine import Engine
from server.engine.events import OnEvent, ignore_event
from server.engine.load_times import LoadTimes
from server.engine.model import ServedModel
from server.engine.queue import Limits
from server.engine.threads import choose_threads
from server.heap import share_heap
from server.metrics.metrics import Metrics
from server.picture.signature import open_key, read_key
from server.picture.writer import MetadataPolicy
from server.request.presets import load_presets
from server.request.resolve import RequestPolicy
from server.tags.library import TagLibrary, read_known_tags, read_tags
from server.tags.table import load_renames

if TYPE_CHECKING:
    from server.engine.stepper import LoadedModel

log = logging.getLogger("naiad")
ACTIVE_IMAGES = {"exact": 4, "shared": 16}
"""Images that have begun and are not finished, by the kind of batching, unless the settings say how many."""


def build_request_policy(
    model: ServedModel,
    settings: Settings,
    others: tuple[ServedModel, ...] = (),
    problems: Mapping[str, str] | None = None,
) -> RequestPolicy:
    """Build the policy by which requests are resolved."""
    presets = load_presets(configs() / "presets.toml")
    api = settings.api
    choices = api.presets, api.unknown_models, api.characters, b"", api.prompt_loras
    renames = load_renames(configs() / "tag_renames.toml")
    policy = RequestPolicy(model, presets, *choices, others, problems or {}, renames)
    return replace(policy, vibe_secret=_read_vibe_secret(settings)) if policy.has_vibe else policy


def _read_vibe_secret(settings: Settings) -> bytes:
    """Return the secret of encoded vibes, from the signing key; without one, they are valid until the server stops."""
    path = signing_key_path(settings)
    key = open_key(path) if settings.metadata == "full" else read_key(path)
    return token_bytes(32) if key is None else key.derive_secret(b"encoded vibes")


def build_metadata_policy(model: ServedModel, settings: Settings) -> MetadataPolicy:
    """Build the policy for the metadata of images; full metadata creates the signing key if it does not exist."""
    key = open_key(signing_key_path(settings)) if settings.metadata == "full" else None
    lossy, batching = read_lossy_options(settings), settings.engine.batching
    policy = MetadataPolicy(model.fingerprint, key, settings.metadata, batching, lossy=lossy)
    return policy.for_model(model)


def check_decoders(models: Iterable[ServedModel], settings: Settings) -> None:
    """Raise `ConfigError` if a model does not have the decoder that is set for its images, or it is not compiled."""
    if settings.speed.decoder == "vae":
        return
    if settings.speed.compile_vae == "on":
        advice = "set it to auto or off, or speed.decoder to vae"
        raise ConfigError(
            f"speed.compile_vae = on: speed.decoder = tiny decodes instead of the VAE; {advice}"
        )
    for model in models:
        if model.entry.preview_decoder is None:
            advice = "set speed.decoder to vae, or serve a catalog that names one (--weights, not --demo)"
            raise ConfigError(f"speed.decoder = tiny: {model.id} has no preview_decoder; {advice}")


def build_engine(
    model: ServedModel,
    settings: Settings,
    others: tuple[ServedModel, ...] = (),
    on_event: OnEvent = ignore_event,
    warms_up: bool = True,
) -> Engine:
    """Build an engine that loads the model when it is started, and the others when they are requested.

    Args:
        warms_up: whether the model is also warmed up then, before the engine is ready.
    """
    check_decoders((model, *others), settings)
    share_heap()  # before the threads begin that use much memory
    load, engine = partial(_load_models, (model, *others), settings, warms_up), settings.engine
    images = ACTIVE_IMAGES[engine.batching] if engine.active_images == "auto" else engine.active_images
    limits = Limits(engine.queue_limit, images)
    return Engine(load, limits, engine.batching, engine.step_timeout, on_event)


def _load_models(models: tuple[ServedModel, ...], settings: Settings, warms_up: bool = True) -> "LoadedModel":
    """Load the first model. Its files are read while torch is imported, which takes about as long."""
    times = LoadTimes()
    with prefetch(models[0].file_fingerprints):
        from server.engine.loading import load_models
    times.finish("import")
    loaded = load_models(models, settings, times, warms_up)
    log.info("ready after %s", times)
    return loaded


def build_access_rules(settings: Settings) -> AccessRules:
    """Build the access rules; off loopback a token is generated if there is neither a token nor an accounts file.

    Raises `ConfigError` if the accounts file is invalid, or if `null` may send requests without a token.
    """
    accounts = None if settings.tokens is None else AccountsFile(settings.tokens).read
    tokens = () if settings.token is None else (settings.token,)
    if not tokens and accounts is None and any(map(needs_token, settings.host)):
        tokens = (generate_token(),)
    if "null" in settings.api.origins and not tokens and accounts is None:
        raise ConfigError("api.origins: any web page can send null from a sandboxed frame; set a token too")
    own_name = (gethostname().lower(),) if any(map(is_unspecified, settings.host)) else ()
    hosts = (*settings.api.hosts, *own_name)
    return AccessRules(tokens, settings.host, hosts, settings.api.origins, accounts)


def check_memory(settings: Settings) -> None:
    """Raise `ConfigError` if the memory for requests does not suffice for one body of the largest size."""
    api = settings.api
    rest = memory_for_bodies(api.memory_limit, api.body_limit, api.image_cache)
    if rest < api.body_limit:
        least = api.memory_limit - rest + api.body_limit
        cached = f" and api.image_cache = {api.image_cache} MiB" if api.image_cache else ""
        reason = f"too small for bodies of api.body_limit = {api.body_limit} MiB{cached}; at least {least}"
        raise ConfigError(f"api.memory_limit = {api.memory_limit}: {reason}")


def build_tag_library(settings: Settings) -> TagLibrary:
    """Read the list of tags; raise `ConfigError` if it is invalid. The library's thread does the rest."""
    read = read_known_tags if settings.tags is None else read_tags(settings.tags)
    return TagLibrary(read)


def build_archive(settings: Settings, metrics: Metrics) -> Archive | None:
    """Open the archive, if there is one; raise `ConfigError` if its folder cannot be used."""
    return None if settings.archive is None else Archive(settings.archive, metrics.archive_failures.inc)


def build_app_state(
    model: ServedModel,
    settings: Settings,
    others: tuple[ServedModel, ...] = (),
    problems: Mapping[str, str] | None = None,
) -> AppState:
    """Build the application's state; raise `ConfigError` if accounts, presets or signing key are invalid."""
    check_memory(settings)
    networks = load_networks(model.tools, settings.device, choose_threads(settings.threads))
    metrics = Metrics()
    return AppState(
        engine=build_engine(model, settings, others, metrics.observe),
        policy=build_request_policy(model, settings, others, problems),
        metadata=build_metadata_policy(model, settings),
        access=build_access_rules(settings),
        tags=build_tag_library(settings),
        zip_type=settings.api.zip_type,
        prefixes=settings.api.prefix,
        body_limit=settings.api.body_limit,
        memory_limit=settings.api.memory_limit,
        image_cache=settings.api.image_cache,
        on_disconnect=settings.engine.on_disconnect,
        deadline=settings.engine.deadline,
        toolbox=Toolbox(networks),
        archive=build_archive(settings, metrics),
        metrics=metrics,
        tracing=open_tracing(os.environ),
    )
