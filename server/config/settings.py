"""Settings of the server: a TOML file, overridden by environment variables, overridden by flags.

Nothing is read at import.
"""

import json
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_origin

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from typer import get_app_dir

from server.config.addresses import normalize_host, normalize_origin, normalize_prefix
from server.config.service_links import is_service_link
from server.config.toml import ConfigError, StrictModel, format_error, read_toml, setting_names, validate

SECRET_LIMIT = 1 << 16
"""Bytes that are read of a secret's file; a token is far shorter."""
LOSSY = {"decoder", "weights", "step_cache"}
"""Settings of `speed` that change pictures by more than rounding, unless they are the defaults."""
FILE_VARIABLES = {"NAIAD_TOKEN_FILE": "NAIAD_TOKEN"}
"""Variables that hold the path of a file with another variable's value, which is how containers get secrets."""


def _match(pattern: str, otherwise: str) -> AfterValidator:
    """Return a validator that refuses a text that does not match the entire pattern, with a message."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(otherwise)
        return text

    return AfterValidator(check)


TOKEN = _match("[!-~]{8,}", "must be at least 8 characters of printable ASCII, without spaces")
DEVICE = _match(r"auto|cpu|mps|cuda(:\d+)?", "should be auto, cpu, cuda, a numbered GPU like cuda:1, or mps")
ADDRESS = _match(
    r"[^/\s:\[\]]+|([0-9a-fA-F]*:){2,}[0-9a-fA-F.]*(%\w+)?",
    "should be a name like example.org or an address, without http:// and without a port",
)
ZipType = Literal["auto", "binary/octet-stream", "application/x-zip-compressed"]
"""Media type of a ZIP that is sent to a client that accepts any type."""
LogFormat = Literal["console", "json", "auto"]
"""Form of the log's lines: text, JSON objects, or text only on a terminal."""
Switch = Literal["auto", "on", "off"]
OnDisconnect = Literal["cancel", "finish"]
"""What becomes of a request whose client has gone."""


def _split(value: object) -> object:
    """Return a text's parts between commas, or a list, as a tuple; anything else as it is."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(cast("list[object]", value)) if isinstance(value, list) else value


def _require_one(values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        raise ValueError("should name at least one address")
    return values


def _parse_count(value: object) -> object:
    if isinstance(value, str) and value.isdecimal() and len(value) < 5:
        value = int(value)
    if value != "auto" and (type(value) is not int or not 1 <= value <= 1024):
        raise ValueError("should be auto, or a whole number from 1 to 1024")
    return value


Hosts = Annotated[tuple[Annotated[str, ADDRESS], ...], BeforeValidator(_split), AfterValidator(_require_one)]
Prefixes = Annotated[tuple[Annotated[str, AfterValidator(normalize_prefix)], ...], BeforeValidator(_split)]
Count = Annotated[int | Literal["auto"], BeforeValidator(_parse_count)]


class EngineSettings(StrictModel):
    """The queue and batching."""

    queue_limit: Annotated[int, Field(ge=1)] = 128
    deadline: Annotated[float, Field(ge=0, le=86_400)] = 0
    on_disconnect: OnDisconnect = "cancel"
    batching: Literal["exact", "shared"] = "exact"
    active_images: Count = "auto"
    max_rows: Count = "auto"
    exit_on_failure: bool = True
    step_timeout: Annotated[float, Field(ge=0, le=86_400)] = 600
    lora_memory: Annotated[int, Field(ge=0)] = 8192
    control_memory: Annotated[int, Field(ge=0)] = 6144
    device_memory: Annotated[int, Field(ge=0)] = 8192
    parked_memory: Annotated[int, Field(ge=0)] = 16384


class SpeedSettings(StrictModel):
    """How the networks are run on the device."""

    channels_last: Switch = "auto"
    fused_projections: Switch = "auto"
    kernels: Switch = "auto"
    graphs: Switch = "auto"
    compile_vae: Switch = "auto"
    compile_unet: Switch = "auto"
    decoder: Literal["vae", "tiny"] = "vae"
    weights: Literal["full", "int8", "float8"] = "full"
    memory: Count = "auto"
    step_cache: Annotated[int, Field(ge=1, le=5, description="1 turns it off")] = 1


class ApiSettings(StrictModel):
    """How requests are read, under which paths, and which hosts and origins may send them."""

    presets: Literal["auto", "client", "always"] = "auto"
    unknown_models: Literal["map", "refuse"] = "map"
    characters: Literal["regional", "flatten"] = "regional"
    prompt_loras: bool = False
    zip_type: ZipType = "auto"
    body_limit: Annotated[int, Field(ge=1, le=1024)] = 64
    memory_limit: Annotated[int, Field(ge=2048)] = 4096
    image_cache: Annotated[int, Field(ge=0)] = 64
    connections: Annotated[int, Field(ge=16)] = 512
    prefix: Prefixes = ()
    hosts: tuple[Annotated[str, AfterValidator(normalize_host)], ...] = ()
    origins: tuple[Annotated[str, AfterValidator(normalize_origin)], ...] = ()


class Settings(StrictModel):
    """All settings; `configs/server.toml` explains each."""

    host: Hosts = ("127.0.0.1",)
    port: Annotated[int, Field(ge=0, le=65535)] = 4242
    token: Annotated[Annotated[str, TOKEN] | None, Field(repr=False)] = None  # fits into an HTTP header
    tokens: Path | None = None
    tags: Path | None = None
    metadata: Literal["full", "plain", "none"] = "full"
    signing_key: Path | None = None
    tls: bool = False
    tls_folder: Path | None = None
    archive: Path | None = None
    weights: Path | None = None
    device: Annotated[str, DEVICE] = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    attention: Literal["sdpa", "xformers"] = "sdpa"
    threads: Count = "auto"
    drain_seconds: Annotated[float, Field(ge=1, le=86_400)] = 25
    log_format: LogFormat = "console"
    engine: EngineSettings = EngineSettings()
    speed: SpeedSettings = SpeedSettings()
    api: ApiSettings = ApiSettings()


def load_settings(file: Path | None, environment: Mapping[str, str], flags: Mapping[str, object]) -> Settings:
    """Return the settings of a file, overridden by the environment, overridden by the flags that are not None.

    Raises `ConfigError` for an unknown key or variable, an invalid value, or two variables that exclude each other.
    """
    values = {} if file is None else _read_file(file)
    parsed = (_parse_setting([key], value, f"--{key}") for key, value in flags.items() if value is not None)
    sources = (values, *_read_environment(environment), *parsed)
    return Settings.model_validate(reduce(_merge, sources))


def signing_key_path(settings: Settings) -> Path:
    """Path of the key that signs images; by default below the home folder, or ~ if there is none."""
    return settings.signing_key or Path(get_app_dir("naiad")) / "signing.pem"


def tls_folder(settings: Settings) -> Path:
    """Folder of the certificates that `naiad tls install` makes."""
    return settings.tls_folder or Path(get_app_dir("naiad")) / "tls"


def listen_port(settings: Settings) -> int:
    """Return the port to listen on: with TLS 443 unless one is set, because clients then have the address built in."""
    return 443 if settings.tls and "port" not in settings.model_fields_set else settings.port


def read_lossy_options(settings: Settings) -> dict[str, object]:
    """Return the settings of `speed` that are on and change pictures by more than rounding, by name."""
    return settings.speed.model_dump(include=LOSSY, exclude_defaults=True)


def describe_lossy(settings: Settings) -> str | None:
    """Return a line that names the lossy options that are on; None if none is."""
    options = (f"speed.{name} = {json.dumps(value)}" for name, value in read_lossy_options(settings).items())
    names = ", ".join(options)
    return f"lossy options change pictures: {names}" if names else None


def _read_file(file: Path) -> dict[str, Any]:
    """Return a file's settings, with relative paths resolved against its folder."""
    values = read_toml(file)
    validate(Settings, values, file)
    paths = values.keys() & {"weights", "tokens", "tags", "signing_key", "tls_folder", "archive"}
    return values | {key: file.parent / values[key] for key in paths}


def _read_environment(environment: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield the settings of all variables: NAIAD_ENGINE_QUEUE_LIMIT sets engine.queue_limit."""
    names = {f"NAIAD_{name.replace('.', '_').upper()}": name for name in setting_names(Settings)}
    for variable, value in environment.items():
        if variable.startswith("NAIAD_") and not is_service_link(variable, environment):
            target = FILE_VARIABLES.get(variable, variable)
            if target not in names:
                hint = _suggest_variable(variable, names)
                raise ConfigError(f"environment: {variable} is not a setting{hint}")
            if target != variable and target in environment:
                raise ConfigError(f"environment: {target} and {variable} are both set; set only one")
            if not value:
                raise ConfigError(f"environment: {variable} is empty; give it a value or unset it")
            # without the newline that secret stores append
            text = value.strip() if target == variable else _read_secret(variable, Path(value))
            yield _parse_setting(names[target].split("."), text, f"environment: {variable}")


def _suggest_variable(variable: str, names: Mapping[str, str]) -> str:
    inner = [name for name in names if name.startswith(f"{variable}_")]
    if inner:
        return f" but a table; set one of {', '.join(inner)}"
    close = get_close_matches(variable, [*names, *FILE_VARIABLES], n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _read_secret(variable: str, file: Path) -> str:
    """Return the content of a secret's file, without the byte order mark and the newline that editors add."""
    try:
        with file.open("rb") as stream:
            content = stream.read(SECRET_LIMIT)
        is_utf16 = content.startswith((BOM_UTF16_LE, BOM_UTF16_BE))  # as Windows PowerShell redirects output
        return content.decode("utf-16" if is_utf16 else "utf-8-sig").strip()
    except OSError as error:
        raise ConfigError(f"environment: {variable} = '{file}': {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"environment: {variable} = '{file}': not a text file in UTF-8") from None


def _parse_setting(path: list[str], value: object, label: str) -> dict[str, Any]:
    """Return one setting of a source that has only text, as nested tables.

    Types are converted, and a list is split at commas. An error names the setting by `label`.
    """
    if _is_list(path):
        value = _split(value)
    values = cast("dict[str, Any]", reduce(lambda inner, key: {key: inner}, reversed(path), value))
    try:
        Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(format_error(error.errors()[0], path, Settings, label)) from None
    return values


def _is_list(path: list[str]) -> bool:
    annotation: Any = Settings
    for key in path:
        annotation = annotation.model_fields[key].annotation
    return get_origin(annotation) is tuple


def _merge(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with `overrides` on top, tables merged key by key."""
    merged = dict(values)
    for key, value in overrides.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], cast("dict[str, Any]", value))
        else:
            merged[key] = value
    return merged
