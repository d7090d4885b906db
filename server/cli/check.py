"""`naiad check`: check all files that a server needs, without loading a model."""

from collections.abc import Iterator

from server.api.accounts import load_accounts
from server.cli.bootstrap import check_memory
from server.config.catalog import Catalog
from server.config.profiles import load_profiles
from server.config.resources import configs
from server.config.settings import Settings, signing_key_path
from server.engine.model import detect_model
from server.picture.signature import read_key
from server.request.presets import load_presets


def check_setup(catalog: Catalog, settings: Settings) -> Iterator[str]:
    """Check profiles, presets, accounts, signing key, checkpoints and upscaler; yield a line for each, then "OK".

    Raises `ConfigError` if a file has an invalid setting or does not exist, `WeightsError` if one cannot be served.
    """
    yield f"profiles: {len(load_profiles(configs() / 'profiles'))}"
    yield f"presets: texts for {len(load_presets(configs() / 'presets.toml').models)} models"
    if settings.tokens is not None:
        yield f"accounts: {len(load_accounts(settings.tokens).account)}"
    check_memory(settings)
    path = signing_key_path(settings)
    key = read_key(path)
    yield f"signing key: {path}, {'created at the first start' if key is None else key.public}"
    for name in catalog.distinct_models():
        model = detect_model(catalog, name)
        yield f"{name}: {model.entry.path.name}, {model.detection.family}, profile {model.profile.name}"
    if catalog.upscaler is not None:
        from server.engine.loading import read_upscaler_scale

        yield f"upscaler: {catalog.upscaler.name}, {read_upscaler_scale(catalog.upscaler)} times"
    yield "OK"
