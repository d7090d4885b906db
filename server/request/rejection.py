"""From an error of pydantic to `Rejected`: the field, its value, and its description as what is allowed."""

import re
from difflib import get_close_matches
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from server.errors import Rejected, shorten


def to_rejection(error: ValidationError, model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Rejected:
    """Return the first error of a section, whose field names start with `prefix`: field, value and description."""
    first = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in (*prefix, *first["loc"]))
    if first["type"] == "missing":
        return Rejected(field, "is required")
    allowed = _find_description(model, [str(part) for part in first["loc"]])
    value, hint = first["input"], ""
    if isinstance(value, str) and first["type"] in ("literal_error", "bool_parsing"):  # one of a few words
        # only 40 characters, because the comparison is slow for long texts
        near = get_close_matches(value[:40], re.findall(r"\w+", allowed), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
    return Rejected(field or "body", f"{shorten(value)} is not {allowed}{hint}")


def _find_description(model: type[BaseModel], path: list[str]) -> str:
    """Return the description of the field that a path of names leads to through nested models."""
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    if not path or path[0] not in fields:
        return "an object"
    field = fields[path[0]]
    for inner in (field.annotation, *get_args(field.annotation)):
        if isinstance(inner, type) and issubclass(inner, BaseModel) and len(path) > 1:
            return _find_description(inner, path[1:])
    item = _find_item_description(field.annotation) if len(path) > 1 else None
    return item or field.description or "a value this field allows"


def _find_item_description(annotation: object) -> str | None:
    """Return the description inside the type of a list, which is that of its items."""
    for inner in get_args(annotation):
        found = inner.description if isinstance(inner, FieldInfo) else _find_item_description(inner)
        if found is not None:
            return found
    return None
