"""TOML files, read strictly: whatever is wrong is told with its file, its line, its key, and what is allowed there."""

import json
import tomllib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

SECRETS = {"token", "key"}
"""Keys whose values no message repeats."""

Key = Sequence[str | int]
"""Where something stands in a document: the names of tables and keys, and indices into arrays."""


class ConfigError(ValueError):
    """A file, variable or flag that sets something wrongly; the message says where, what, and what is allowed."""


class StrictModel(BaseModel):
    """A table of a configuration file: frozen, and no key it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Model = TypeVar("Model", bound=BaseModel)


def read_toml(file: Path) -> dict[str, Any]:
    """The content of a TOML file; a ConfigError names the file, and the line that is none."""
    text = _text(file)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason, _, place = str(error).partition(" (at ")
        line = int(place.split()[1].strip(",")) if place.startswith("line") else text.count("\n") + 1
        raise ConfigError(f"{file}:{line}: {reason}") from None


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{file}:{line}: not UTF-8, which TOML always is") from None


def validate(model: type[Model], values: Mapping[str, Any], file: Path | str) -> Model:
    """What a file says, as a model: types are taken at their word, so that `true` is no number and "1" none either.

    Raises:
        ConfigError: the first thing that is wrong, an unknown key before anything it may have been meant for.
    """
    try:
        # as JSON, because a strict model then still takes paths from strings and tuples from arrays
        return model.model_validate_json(json.dumps(values), strict=True)
    except TypeError:
        raise ConfigError(f"{file}: dates and times are no setting's value") from None
    except ValidationError as error:
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    raise ConfigError(f"{locate(file, first['loc'])}: {_fault(first, model)}")


def _fault(error: ErrorDetails, model: type[BaseModel]) -> str:
    key = dotted(error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{key!r} is not a key here{_near(error['loc'], model)}"
    if error["type"] == "missing":
        return f"{key} is required"
    return format_error(error, key)


def format_error(error: ErrorDetails, label: str) -> str:
    """What pydantic found wrong, as `label = value: reason`; secrets and whole tables are not repeated."""
    reason = error["msg"].removeprefix("Input ").removeprefix("Value error, ")
    value = error["input"]
    if SECRETS & set(error["loc"]) or not isinstance(value, str | int | float):
        return f"{label}: {reason}"
    return f"{label} = {str(value).lower() if isinstance(value, bool) else repr(value)}: {reason}"


def dotted(key: Key) -> str:
    """A key as a file would write it: `engine.queue_limit`."""
    return ".".join(map(str, key))


def locate(file: Path | str, key: Key) -> str:
    """`FILE:LINE` of a key, or of the table it is missing from; the file alone where no line can be told."""
    try:
        line = line_of(Path(file).read_text("utf-8-sig"), key)
    except (OSError, ValueError):  # the file has changed since it was read
        line = None
    return str(file) if line is None else f"{file}:{line}"


def line_of(text: str, key: Key) -> int | None:
    """The line, from 1, where the statement begins that first sets a key, or the nearest table around it.

    tomllib tells no positions, but the lines down to the end of any statement are a document too: the key is set
    by the first line after which it is there. Quoted keys, dotted keys and inline tables are so no special case.
    """
    while key and not _holds(tomllib.loads(text), key):
        key = key[:-1]
    lines = text.split("\n")

    def reached(count: int) -> bool:
        return _holds(_statements(lines, count), key)

    return bisect_left(range(len(lines)), True, key=reached) if key else None


def _statements(lines: Sequence[str], count: int) -> dict[str, Any]:
    """The document of all statements that begin in the first `count` lines."""
    for end in range(count, len(lines)):
        try:
            return tomllib.loads("\n".join(lines[:end]))
        except tomllib.TOMLDecodeError:  # the line is in the middle of a statement
            continue
    return tomllib.loads("\n".join(lines))


def _holds(document: object, key: Key) -> bool:
    for part in key:
        try:
            document = cast("dict[str | int, object]", document)[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def _near(key: Key, model: type[BaseModel]) -> str:
    """The known key nearest to an unknown one: among those of its own table first, then anywhere."""
    table: type[BaseModel] | None = model
    for part in key[:-1]:
        if table is not None and part in table.model_fields:
            table = _table(table.model_fields[str(part)].annotation)
    siblings = [] if table is None else [dotted((*key[:-1], name)) for name in table.model_fields]
    wanted, anywhere = dotted(key), [*setting_names(model)]
    near = get_close_matches(wanted, siblings, n=1) or get_close_matches(wanted, anywhere, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _table(kind: object) -> type[BaseModel] | None:
    """The model in an annotation, such as that of a table's or an array's entries."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    return next((found for inner in get_args(kind) if (found := _table(inner))), None)


def setting_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted names of all keys of a model and the tables in it."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from setting_names(inner, f"{prefix}{name}.")
        else:
            yield prefix + name
