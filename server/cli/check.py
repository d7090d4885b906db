"""`naiad check`: check all files that a server needs, without loading a model."""

from collections.abc import Iterator

from pipelines.errors import WeightsError
from server.api.accounts import load_accounts
from server.cli.bootstrap import check_memory
from server.config.catalog import Catalog
from server.config.profiles import load_profiles
from server.config.resources import configs
from server.config.settings import Settings, signing_key_path
from server.config.toml import ConfigError
from server.engine.model import detect_model
from server.picture.signature import check_key_path, read_key
from server.request.presets import load_presets
from server.tags.table import load_renames, read_rows


def check_setup(catalog: Catalog, settings: Settings) -> Iterator[str]:
    """Check profiles, presets, accounts, tags, signing key, checkpoints and upscaler; yield a line for each, then "OK".

    Raises `ConfigError` if a file has an invalid setting or does not exist, or if weights cannot be loaded.
    """
    yield f"profiles: {len(load_profiles(configs() / 'profiles'))}"
    yield f"presets: texts for {len(load_presets(configs() / 'presets.toml').models)} models"
    yield f"tag renames: {len(load_renames(configs() / 'tag_renames.toml'))}"
    if settings.tokens is not None:
        yield f"accounts: {len(load_accounts(settings.tokens).account)}"
    if settings.tags is not None:
        yield f"tags: {len(read_rows(settings.tags))}"
    check_memory(settings)
    path = signing_key_path(settings)
    key = read_key(path)
    if key is None:
        check_key_path(path)
    yield f"signing key: {path}, {'created at the first start' if key is None else key.public}"
    try:
        yield from _check_weights(catalog)
    except WeightsError as error:
        raise ConfigError(str(error)) from None
    yield "OK"


def _check_weights(catalog: Catalog) -> Iterator[str]:
    models = [detect_model(catalog, name) for name in catalog.distinct_models()]
    from server.engine.loading import check_model, read_upscaler_scale  # takes seconds

    for model in models:
        check_model(model)
        yield f"{model.model}: {model.entry.path.name}, {model.detection.family}, profile {model.profile.name}"
    if catalog.upscaler is not None:
        yield f"upscaler: {catalog.upscaler.name}, {read_upscaler_scale(catalog.upscaler)} times"
