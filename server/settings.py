"""How the server is set up: a TOML file, overruled by the environment, overruled by flags. Never read at import."""

import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

PREFIX = "NAIAD_"


class ConfigError(ValueError):
    """A file or variable that sets something wrongly; the message says where, what, and what is allowed."""


class Strict(BaseModel):
    """A part of a configuration file: frozen, and no key it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineSettings(Strict):
    """How work is queued and batched."""

    queue_limit: Annotated[int, Field(ge=1)] = 64
    batching: Literal["exact", "shared"] = "exact"


class ApiSettings(Strict):
    """How requests are read, and who may send them."""

    presets: Literal["auto", "client", "always"] = "auto"
    unknown_models: Literal["map", "refuse"] = "map"
    body_limit: Annotated[int, Field(ge=1, le=1024)] = 64
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()


class Settings(Strict):
    """Every setting; `configs/server.toml` lists them with their defaults."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 4242
    token: str | None = None
    tokens: Path | None = None
    metadata: Literal["full", "plain", "none"] = "full"
    signing_key: Path | None = None
    weights: Path | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    attention: Literal["sdpa", "xformers"] = "sdpa"
    engine: EngineSettings = EngineSettings()
    api: ApiSettings = ApiSettings()


Model = TypeVar("Model", bound=BaseModel)


def load_settings(file: Path | None, environment: Mapping[str, str], flags: Mapping[str, object]) -> Settings:
    """Settings from all three sources; flags that are None were not given.

    Raises:
        ConfigError: an unknown key or a value that is not allowed.
    """
    sources = {
        str(file): {} if file is None else _beside(file, read_toml(file)),
        "environment": _from_environment(environment),
        "flags": {key: value for key, value in flags.items() if value is not None},
    }
    merged: dict[str, Any] = {}
    for origin, values in sources.items():
        checked(Settings, values, origin)  # so that what is wrong is said of the source that says it
        merged = _with(merged, values)
    return Settings.model_validate(merged)


def _beside(file: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Take relative paths from beside the file that names them."""
    paths = (key for key in ("weights", "tokens", "signing_key") if isinstance(values.get(key), str))
    return values | {key: file.parent / values[key] for key in paths}


def read_toml(file: Path) -> dict[str, Any]:
    """The content of a TOML file; a ConfigError names the file when there is none or it is none."""
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None


def checked(model: type[Model], values: Mapping[str, Any], origin: str) -> Model:
    """Validate what a file says; the first thing wrong is told with its dotted key."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{origin}: {key!r} is not a key here{_near(key, model)}") from None
        if first["type"] == "missing":
            raise ConfigError(f"{origin}: {key} is required") from None
        given = "..." if key == "token" else repr(first["input"])
        raise ConfigError(f"{origin}: {key} = {given}: {first['msg'].removeprefix('Input ')}") from None


def _near(key: str, model: type[BaseModel]) -> str:
    near = get_close_matches(key, list(names(model)), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from names(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """NAIAD_ENGINE_QUEUE_LIMIT sets engine.queue_limit; a variable that sets nothing is refused."""
    known = {PREFIX + name.replace(".", "_").upper(): name for name in names(Settings)}
    values: dict[str, Any] = {}
    for variable, value in environment.items():
        if variable.startswith(PREFIX):
            if variable not in known:
                near = get_close_matches(variable, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ConfigError(f"environment: {variable} is not a setting{hint}")
            values = _with(values, _nested(known[variable].split("."), value))
    return values


def _nested(path: list[str], value: object) -> dict[str, Any]:
    return {path[0]: value if len(path) == 1 else _nested(path[1:], value)}


def _with(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping laid over another, tables merged key by key."""
    merged = dict(values)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _with(merged[key], cast("dict[str, Any]", value))
        else:
            merged[key] = value
    return merged
