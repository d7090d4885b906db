"""Configs that belong to a checkpoint: JSON files of unknown origin, and comparing the numbers in them."""

import json
from collections.abc import Mapping
from math import isclose
from pathlib import Path
from typing import cast

from pipelines.errors import WeightsError

MAX_BYTES = 1 << 20
LARGEST = 1e9  # JSON has integers that no float can hold


def read_config(file: Path) -> Mapping[str, object]:
    """Return the object in a JSON file; raise WeightsError if there is none, OSError if it cannot be read."""
    with file.open("rb") as stream:
        content = stream.read(MAX_BYTES)
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise WeightsError(file, f"not JSON of less than {MAX_BYTES} bytes") from error
    if not isinstance(config, dict):
        raise WeightsError(file, "not a JSON object")
    return cast("dict[str, object]", config)


def is_near(value: object, expected: float, relative: float = 1e-6, absolute: float = 0.0) -> bool:
    """Return whether a value is a number within a tolerance of the expected one."""
    if not isinstance(value, int | float) or abs(value) > LARGEST:
        return False
    return isclose(value, expected, rel_tol=relative, abs_tol=absolute)
