"""What is wrong with a value of a settings file, in the words of the file's language instead of pydantic's."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from pydantic import BaseModel
from pydantic_core import ErrorDetails

NUMBERS = ("int_", "float_", "finite_", "greater_", "less_", "multiple_")
"""What the types of pydantic's errors begin with that are about a number: not one, or out of its range."""
TABLES = ("model_type", "model_attributes_type", "dict_type", "mapping_type")
ARRAYS = ("tuple_type", "list_type")
TEXTS = ("string_type", "path_type")
Schema = Mapping[str, Any]
"""JSON Schema of a value, as pydantic makes it of a model's field."""


def explain(error: ErrorDetails, key: Sequence[str | int], model: type[BaseModel]) -> str:
    """Return why the value of a file's key is wrong, as a clause like "should be a whole number from 1 to 5"."""
    kind, location = error["type"], error["loc"]
    if kind.startswith(NUMBERS):
        number = describe_number(find_schema(model, location))
        return f"should be {number.replace('a number', 'a finite number') if kind == 'finite_number' else number}"
    if kind in TABLES:
        return f"should be a table: {_describe_table(key, is_array=isinstance(key[-1], int))}"
    if kind in ARRAYS:
        is_of_tables = "properties" in find_schema(model, (*location, 0))
        form = _describe_table(key, is_array=True) if is_of_tables else "write its values in [ ]"
        return f"should be an array: {form}"
    if kind in TEXTS:
        return "should be text in quotes"
    if kind.startswith("bool_"):
        return "should be true or false"
    if kind == "too_short":
        least = error.get("ctx", {})["min_length"]
        return f"should have at least {least} value{'s' if least > 1 else ''}"
    return error["msg"].removeprefix("Input ").removeprefix("Value error, ")


def describe_number(schema: Schema) -> str:
    """Return which numbers a schema allows: "a whole number from 1 to 5"; its description says what one of them does.

    >>> describe_number({"type": "number", "minimum": 0})
    'a number, at least 0'
    """
    kind = "a whole number" if schema.get("type") == "integer" else "a number"
    if "multipleOf" in schema:
        kind = f"a multiple of {schema['multipleOf']}"
    bounds = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    if "minimum" in schema and "maximum" in schema:
        numbers = f"{kind} from {schema['minimum']:g} to {schema['maximum']:g}"
    else:
        limits = (f"{word} {schema[name]:g}" for name, word in bounds.items() if name in schema)
        numbers = ", ".join((kind, *limits))
    note = schema.get("description")
    return f"{numbers}; {note}" if note else numbers


def find_schema(model: type[BaseModel], key: Sequence[str | int]) -> Schema:
    """Return the schema of a model's value, empty if it has none; an optional value has that of the value."""
    document = model.model_json_schema()
    schema = _resolve(document, document)
    for part in key:
        if isinstance(part, int):
            inner = schema.get("items")
        else:
            inner = schema.get("properties", {}).get(part, schema.get("additionalProperties"))
        schema = _resolve(inner, document)
    return schema


def _resolve(schema: object, document: Schema) -> Schema:
    if not isinstance(schema, dict):  # none, or `false` for further keys
        return {}
    found = cast("Schema", schema)
    if "anyOf" in found:
        return _resolve(next(each for each in found["anyOf"] if each.get("type") != "null"), document)
    if "$ref" in found:
        return document["$defs"][found["$ref"].rpartition("/")[2]]
    return found


def _describe_table(key: Sequence[str | int], is_array: bool) -> str:
    name = ".".join(part for part in key if isinstance(part, str))
    return f"write {f'[[{name}]]' if is_array else f'[{name}]'} and its keys below"
