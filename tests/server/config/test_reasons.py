"""What is said of a wrong value, for every value of every file."""

import re
from typing import Any

import pytest

from server.api.accounts import Accounts
from server.config.catalog import Catalog
from server.config.profiles import Profile
from server.config.reasons import describe_number, find_schema
from server.config.settings import Settings
from server.config.toml import ConfigError, validate
from server.director.recipes import Recipes
from server.request.presets import Presets
from server.tags.table import RenameFile

MODELS = (Settings, Catalog, Profile, Accounts, Recipes, Presets, RenameFile)
WRONG = (-1000, 10**9, 1.5, "x", True, [], [1], {}, {"x": 1}, "1")
LIBRARY = re.compile(r"valid (integer|number|string|boolean|array|list|tuple)|object|than|Tuple|Input|parse")


def nest(path: tuple[str | int, ...], value: Any) -> Any:
    """Return a value inside the tables and arrays of its path."""
    for part in reversed(path):
        value = [value] if isinstance(part, int) else {part: value}
    return value


def iter_paths(document, schema, path=()):
    """Yield the path to each value that a model's schema has, through tables and arrays of them."""
    if path:
        yield path
    for name in schema.get("properties", {"any": None} if "additionalProperties" in schema else {}):
        inner = find_schema(document, (*path, name))
        yield from iter_paths(document, inner, (*path, name))
        if "properties" in find_schema(document, (*path, name, 0)):
            yield from iter_paths(document, find_schema(document, (*path, name, 0)), (*path, name, 0))


@pytest.mark.parametrize("model", MODELS)
def test_the_bounds_of_every_number_are_found(model):
    """A validator between a type and its bounds hides them from the schema."""
    found = [find_schema(model, path) for path in iter_paths(model, find_schema(model, ()))]
    assert [schema for schema in found if schema.keys() & {"gt", "ge", "lt", "le"}] == []


@pytest.mark.parametrize("model", MODELS)
def test_no_message_is_in_the_words_of_a_library(model):
    refused = set()
    for path in iter_paths(model, find_schema(model, ())):
        for value in WRONG:
            values = nest(path, value)
            try:
                validate(model, values, "a.toml")
            except ConfigError as error:
                refused.add(str(error))
    assert refused
    assert [message for message in sorted(refused) if LIBRARY.search(message)] == []


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 5}, "a whole number from 1 to 5"),
        ({"type": "integer", "minimum": 2048}, "a whole number, at least 2048"),
        ({"type": "number", "maximum": 0.5}, "a number, at most 0.5"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "a number, above 0, at most 1"),
        ({"type": "integer", "multipleOf": 32, "minimum": 64}, "a multiple of 32, at least 64"),
        ({"type": "integer", "description": "1 turns it off"}, "a whole number; 1 turns it off"),
        ({}, "a number"),
    ],
)
def test_a_number_is_described_with_all_of_its_range(schema, text):
    assert describe_number(schema) == text
