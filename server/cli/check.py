"""`naiad check`: check all files that a server needs, without loading a model."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pipelines.errors import UnusableSetting, WeightsError
from server.api.accounts import load_accounts
from server.cli.bootstrap import check_decoders, check_memory
from server.config.catalog import Catalog
from server.config.profiles import load_profiles
from server.config.resources import configs
from server.config.settings import Settings, describe_lossy, signing_key_path, tls_folder
from server.config.toml import ConfigError
from server.director.network import load_networks
from server.director.recipes import load_recipes
from server.engine.controlnets import describe_controls
from server.engine.inversions import describe_inversions
from server.engine.loras import describe_loras
from server.engine.model import detect_model
from server.picture.signature import check_key_path, read_key
from server.request.presets import load_presets
from server.tags.table import load_renames, read_rows
from server.tls.certificates import Certificates


def check_setup(catalog: Catalog, settings: Settings, probe: bool = False) -> Iterator[str]:
    """Check all that a server needs, from profiles to the device; yield a line for each, then "OK".

    With `probe`, models are loaded too, and their networks must show the prediction that was detected.

    Raises `ConfigError` if a file has an invalid setting or does not exist, if weights cannot be loaded, or if the
    device lacks what is set.
    """
    yield f"profiles: {len(load_profiles(configs() / 'profiles'))}"
    yield f"presets: texts for {len(load_presets(configs() / 'presets.toml').models)} models"
    yield f"tag renames: {len(load_renames(configs() / 'tag_renames.toml'))}"
    if settings.tags is not None:
        yield f"tags: {len(read_rows(settings.tags))}"
    recipes = load_recipes()
    yield f"director tools: {len(recipes.recipes)} recipes, {len(recipes.moods)} moods"
    if settings.tokens is not None:
        yield _check_accounts(settings.tokens)
    check_memory(settings)
    path = signing_key_path(settings)
    key = read_key(path)
    if key is None:
        check_key_path(path)
    yield f"signing key: {path}, {'created at the first start' if key is None else key.public}"
    if settings.tls:
        certificates = Certificates(tls_folder(settings))
        warning = certificates.check(datetime.now(UTC))
        yield warning or f"tls: valid until {certificates.read_end():%Y-%m-%d}"
    try:
        yield from _check_weights(catalog, settings)
        yield from _check_torch(settings)
        for tool, network in load_networks(catalog.tools).items():
            size = "any size" if network.size is None else "{}x{}".format(*network.size)
            yield f"{tool}: {network.name}, images of {size}"
        if probe:
            yield from _probe_models(catalog, settings)
    except (UnusableSetting, WeightsError) as error:
        raise ConfigError(str(error)) from None
    yield "OK"


def _check_accounts(file: Path) -> str:
    """Return a line about the accounts file, and what is unsafe about it."""
    accounts = load_accounts(file).account
    clear = sum(account.token is not None for account in accounts)
    warning = f", {clear} with a token in clear (`naiad token add` keeps only a hash)" if clear else ""
    if clear and os.name == "posix" and file.stat().st_mode & 0o077:
        warning += f"; other users of this machine may read it: chmod 600 {file}"
    return f"accounts: {len(accounts)}{warning}"


def _check_weights(catalog: Catalog, settings: Settings) -> Iterator[str]:
    models = [detect_model(catalog, name) for name in catalog.distinct_models()]
    check_decoders(models, settings)
    from server.engine.loading import check_model, read_upscaler_scale  # takes seconds

    for model in models:
        check_model(model, settings)
        yield f"{model.id}: {model.entry.path.name}, {model.detection.family}, profile {model.profile.name}"
    yield from describe_controls(catalog)
    if catalog.lora_folder is not None:
        yield from describe_loras(catalog.lora_folder)
    if catalog.inversion_folder is not None:
        yield from describe_inversions(catalog.inversion_folder)
    if catalog.upscaler is not None:
        yield f"upscaler: {catalog.upscaler.name}, {read_upscaler_scale(catalog.upscaler)} times"


def _check_torch(settings: Settings) -> Iterator[str]:
    """Yield lines about torch's build, the GPUs and `speed`; raise `ConfigError` if the device cannot be used so."""
    from server.engine.device import check_device, describe_build, resolve_device

    yield from describe_build()
    yield from check_device(resolve_device(settings.device), settings)
    lossy = describe_lossy(settings)
    if lossy is not None:
        yield lossy


def _probe_models(catalog: Catalog, settings: Settings) -> Iterator[str]:
    from server.engine.loading import probe_model

    for name in catalog.distinct_models():
        yield f"{name}: {probe_model(detect_model(catalog, name), settings)}"
