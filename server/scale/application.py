"""The application that Ray Serve's own tools and KubeRay deploy: `server.scale.application:build`."""

import os
from pathlib import Path

from pydantic import BaseModel, Field
from ray.serve import Application

from server.config.catalog import choose_catalog
from server.config.settings import load_settings
from server.config.toml import ConfigError
from server.engine.model import detect_model, detect_others
from server.scale.deployment import build_application
from server.scale.service import Scale, Service


class Arguments(BaseModel, extra="forbid"):
    """`args` of the application in Serve's configuration. Settings come from variables, as in a container."""

    checkpoint: Path | None = None
    demo: bool = False
    replicas: int = Field(default=1, ge=1)
    max_replicas: int | None = None


def build(arguments: Arguments) -> Application:
    """Return the application of a cluster's proxies, which other machines reach, so that a token must be set.

    Raises `ConfigError` for a setup that cannot be served.
    """
    settings = load_settings(None, os.environ, {"host": "0.0.0.0"})  # noqa: S104  # where the proxies listen
    if settings.token is None and settings.tokens is None:
        raise ConfigError("other machines can reach a cluster; set NAIAD_TOKEN_FILE or NAIAD_TOKENS")
    catalog = choose_catalog(settings, arguments.checkpoint, arguments.demo, None)
    service = Service(detect_model(catalog), settings, *detect_others(catalog))
    most = arguments.max_replicas or arguments.replicas
    return build_application(service, Scale(arguments.replicas, most, gpus=int(settings.device != "cpu")))
