"""How the server is set up: a TOML file, overruled by the environment, overruled by flags. Never read at import."""

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_origin

from pydantic import AfterValidator, Field, ValidationError
from typer import get_app_dir

from server.config.toml import ConfigError, StrictModel, format_error, read_toml, setting_names, validate

PREFIX = "NAIAD_"
FROM_FILE = {"NAIAD_TOKEN_FILE": "NAIAD_TOKEN"}
"""Variables that name a file with the value of another, as containers are given their secrets."""


def _token(text: str) -> str:
    if not re.fullmatch("[!-~]{8,}", text):
        raise ValueError("must be at least 8 characters of printable ASCII, without spaces")
    return text


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError("should be auto, cpu, cuda, a numbered one like cuda:1, or mps")
    return name


def _origin(address: str) -> str:
    if not re.fullmatch(r"https?://[^/\s]+", address):
        raise ValueError("should be like https://example.org, with no path and no / at its end")
    return address


def _host(name: str) -> str:
    if not re.fullmatch(r"[^/\s:\[\]]+|([0-9a-fA-F]*:){2,}[0-9a-fA-F.]*(%\w+)?", name):
        raise ValueError(
            "should be a name like example.org or an address, without http:// and without a port"
        )
    return name


Token = Annotated[str, AfterValidator(_token)]
"""A bearer token, as an HTTP header can carry it."""


class EngineSettings(StrictModel):
    """How work is queued and batched."""

    queue_limit: Annotated[int, Field(ge=1)] = 64
    batching: Literal["exact", "shared"] = "exact"


class ApiSettings(StrictModel):
    """How requests are read, and who may send them."""

    presets: Literal["auto", "client", "always"] = "auto"
    unknown_models: Literal["map", "refuse"] = "map"
    body_limit: Annotated[int, Field(ge=1, le=1024)] = 64
    hosts: tuple[Annotated[str, AfterValidator(_host)], ...] = ()
    origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = ()


class Settings(StrictModel):
    """Every setting; `configs/server.toml` lists them with their defaults."""

    host: Annotated[str, AfterValidator(_host)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 4242
    token: Annotated[Token | None, Field(repr=False)] = None
    tokens: Path | None = None
    metadata: Literal["full", "plain", "none"] = "full"
    signing_key: Path | None = None
    weights: Path | None = None
    device: Annotated[str, AfterValidator(_device)] = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    attention: Literal["sdpa", "xformers"] = "sdpa"
    engine: EngineSettings = EngineSettings()
    api: ApiSettings = ApiSettings()


def load_settings(file: Path | None, environment: Mapping[str, str], flags: Mapping[str, object]) -> Settings:
    """Settings from all three sources; flags that are None were not given.

    Raises:
        ConfigError: an unknown key, a value that is not allowed, or two variables that contradict each other.
    """
    sources = (
        {} if file is None else _from_file(file),
        *_from_environment(environment),
        *_from_flags(flags),
    )
    return Settings.model_validate(reduce(_with, sources))


def signing_key_path(settings: Settings) -> Path:
    """Where the key that signs pictures is kept; unless set, in the user's own configuration folder."""
    return settings.signing_key or Path(get_app_dir("naiad")) / "signing.pem"


def _from_file(file: Path) -> dict[str, Any]:
    """What a file sets; its relative paths are beside it."""
    values = read_toml(file)
    validate(Settings, values, file)
    paths = values.keys() & {"weights", "tokens", "signing_key"}
    return values | {key: file.parent / values[key] for key in paths}


def _from_environment(environment: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """NAIAD_ENGINE_QUEUE_LIMIT sets engine.queue_limit; a variable that sets nothing is refused."""
    known = {PREFIX + name.replace(".", "_").upper(): name for name in setting_names(Settings)}
    for variable, value in environment.items():
        if variable.startswith(PREFIX):
            plain = FROM_FILE.get(variable, variable)
            if plain not in known:
                raise ConfigError(f"environment: {variable} is not a setting{_hint(variable, known)}")
            if plain != variable and plain in environment:
                raise ConfigError(f"environment: {plain} and {variable} are both set; one of them is enough")
            if not value:
                raise ConfigError(f"environment: {variable} is empty; give it a value or unset it")
            told = value if plain == variable else _secret(variable, Path(value))
            yield _alone(known[plain].split("."), told, f"environment: {variable}")


def _hint(variable: str, known: Mapping[str, str]) -> str:
    inner = [name for name in known if name.startswith(f"{variable}_")]
    if inner:
        return f" but a table of them; there are {', '.join(inner)}"
    near = get_close_matches(variable, [*known, *FROM_FILE], n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _secret(variable: str, file: Path) -> str:
    """The content of a file that a variable names, as lines come from editors and secret stores."""
    try:
        return file.read_text("utf-8").strip()
    except OSError as error:
        raise ConfigError(f"environment: {variable} = '{file}': {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"environment: {variable} = '{file}': not a text") from None


def _from_flags(flags: Mapping[str, object]) -> Iterator[dict[str, Any]]:
    for key, value in flags.items():
        if value is not None:
            yield _alone([key], value, f"--{key}")


def _alone(path: list[str], value: object, label: str) -> dict[str, Any]:
    """One setting from a source that is text: read leniently, and what is wrong is said of the source."""
    if isinstance(value, str) and _is_list(path):
        value = [part.strip() for part in value.split(",") if part.strip()]
    values = cast("dict[str, Any]", reduce(lambda inner, key: {key: inner}, reversed(path), value))
    try:
        Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(format_error(error.errors()[0], label)) from None
    return values


def _is_list(path: list[str]) -> bool:
    table: Any = Settings
    for key in path:
        table = table.model_fields[key].annotation
    return get_origin(table) is tuple


def _with(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping laid over another, tables merged key by key."""
    merged = dict(values)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _with(merged[key], cast("dict[str, Any]", value))
        else:
            merged[key] = value
    return merged
