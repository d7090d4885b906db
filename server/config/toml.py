"""Strict reading of TOML files: an error names the file, the line, the key, the value and what is allowed."""

import json
import os
import tomllib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from server.config.reasons import explain
from server.config.syntax import SECRETS, explain_syntax

LARGEST_FILE = 1 << 20
"""Bytes of a TOML file; a setting that names a model by mistake would fill the memory."""

SPECIAL_FILE = "a pipe, device or socket; name a regular file"

Key = Sequence[str | int]
"""Path of a value in a document: names of tables and keys, and indices into arrays."""


class ConfigError(ValueError):
    """A file, variable or flag has an invalid setting; the message says where, which value, and what is allowed."""


class DeviceUnavailable(ConfigError):
    """The device that a setting names is not there, or not yet: when a machine starts, its GPU may be late."""


def expand_path(value: object) -> object:
    """Return the table that a path alone stands for, and any other value as it is."""
    return {"path": value} if isinstance(value, str) else value


class StrictModel(BaseModel):
    """A table of a configuration file: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Model = TypeVar("Model", bound=BaseModel)


def read_toml(file: Path) -> dict[str, Any]:
    """Return the content of a TOML file; raise `ConfigError` if it is unreadable, not UTF-8, or has a syntax error."""
    text = _read_text(file)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # "Invalid value (at line 1, column 7)", or "(at end of document)"
        reason, _, position = str(error).partition(" (at ")
        is_numbered = position.startswith("line")
        line = int(position.split()[1].strip(",")) if is_numbered else text.count("\n") + 1
        problem = explain_syntax(reason, text.split("\n")[line - 1])
        raise ConfigError(f"{file}:{line}: {problem}") from None


def is_special(file: Path) -> bool:
    """Return whether a path is a pipe, device or socket; opening a named pipe would wait for its other end."""
    # os.path, because it returns False, not an error, if the name is too long
    is_regular = os.path.isfile(file) or os.path.isdir(file)  # noqa: PTH112, PTH113
    return os.path.exists(file) and not is_regular  # noqa: PTH110


def require_regular_file(file: Path) -> None:
    """Raise `ConfigError` for a pipe, device or socket; opening a missing file or a folder fails by itself."""
    if is_special(file):
        raise ConfigError(f"{file}: {SPECIAL_FILE}")


def _read_text(file: Path) -> str:
    require_regular_file(file)
    try:
        with file.open("rb") as stream:
            content = stream.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise ConfigError(f"{file}: more than {LARGEST_FILE // (1 << 20)} MiB; name a TOML file")
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{file}:{line}: not UTF-8; a TOML file must be") from None


def validate(model: type[Model], values: Mapping[str, Any], file: Path | str) -> Model:
    """Return the values of a file as a model, without converting types: neither `true` nor `"1"` is a number.

    Raises `ConfigError` for the first error; unknown keys go first, because a required key may only be misspelled.
    """
    try:
        # as JSON, because a strict model then still takes paths from strings and tuples from arrays
        return model.model_validate_json(json.dumps(values), strict=True)
    except TypeError:
        raise ConfigError(f"{file}: no setting takes a date or a time") from None
    except ValidationError as error:
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        key = (*_find_key(values, first["loc"]),)
    raise ConfigError(f"{locate(file, key)}: {_format_key_error(first, key, model)}")


def _find_key(document: object, location: Key) -> Iterator[str | int]:
    """Yield the parts of a validation error's location, without the index where a value stands for a list of one."""
    for part in location:
        if isinstance(part, str) or isinstance(document, list):
            yield part
            try:
                document = cast("dict[str | int, object]", document)[part]
            except (KeyError, IndexError, TypeError):
                document = None


def _format_key_error(error: ErrorDetails, key: Key, model: type[BaseModel]) -> str:
    name = join_key(key)
    if error["type"] == "extra_forbidden":
        return f"{name!r} is not a key here{_suggest_key(key, model)}"
    if error["type"] == "missing":
        return f"{name} is required"
    return format_error(error, key, model, name)


def format_error(error: ErrorDetails, key: Key, model: type[BaseModel], label: str) -> str:
    """Return a model's error as `label = value: reason`; without the value if it is a secret, a table or an array."""
    reason, value = explain(error, key, model), error["input"]
    if SECRETS & set(error["loc"]) or not isinstance(value, str | int | float):
        return f"{label}: {reason}"
    return f"{label} = {str(value).lower() if isinstance(value, bool) else repr(value)}: {reason}"


def join_key(key: Key) -> str:
    """Return a key as one dotted name: `engine.queue_limit`."""
    return ".".join(map(str, key))


def locate(file: Path | str, key: Key) -> str:
    """Return `FILE:LINE` of a key or of the table it is missing from; `FILE` if neither has a line."""
    try:
        line = find_line(Path(file).read_text("utf-8-sig"), key)
    except (OSError, ValueError):  # the file has changed since it was read
        line = None
    return str(file) if line is None else f"{file}:{line}"


# No maintained parser for Python gives the lines of keys: tomllib and tomlkit give only those of syntax errors
# (tomlkit's issue 55, open since 2019). Parsing the first n lines instead handles quoted keys, dotted keys and inline
# tables without a grammar of our own.
def find_line(text: str, key: Key) -> int | None:
    """Return the line, from 1, of the statement that first sets a key, else of the innermost table around it.

    That is the smallest n for which the statements that begin in the first n lines contain the key.
    """
    while key and not _has_key(tomllib.loads(text), key):
        key = key[:-1]
    if not key:
        return None
    lines = text.split("\n")
    return bisect_left(range(len(lines)), True, key=lambda n: _has_key(_parse_statements(lines, n), key))


def _parse_statements(lines: Sequence[str], count: int) -> dict[str, Any]:
    """Parse all statements that begin in the first `count` lines; the last one may end later."""
    for end in range(count, len(lines)):
        try:
            return tomllib.loads("\n".join(lines[:end]))
        except tomllib.TOMLDecodeError:  # cut in the middle of a statement
            continue
    return tomllib.loads("\n".join(lines))


def _has_key(document: object, key: Key) -> bool:
    for part in key:
        try:
            document = cast("dict[str | int, object]", document)[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def _suggest_key(key: Key, model: type[BaseModel]) -> str:
    """Return a hint at the closest known key: among those of the same table first, then among all."""
    table: type[BaseModel] | None = model
    for part in key[:-1]:
        if table is not None and part in table.model_fields:
            table = _find_model(table.model_fields[str(part)].annotation)
    siblings = [] if table is None else [join_key((*key[:-1], name)) for name in table.model_fields]
    name, names = join_key(key), [*setting_names(model)]
    close = get_close_matches(name, siblings, n=1) or get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _find_model(annotation: object) -> type[BaseModel] | None:
    """Return the first model in an annotation, such as `Account` in `tuple[Account, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for inner in get_args(annotation) if (model := _find_model(inner))), None)


def setting_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all keys of a model, those of nested tables included."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from setting_names(inner, f"{prefix}{name}.")
        else:
            yield prefix + name
