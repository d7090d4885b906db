"""The prompts and settings of an image, from its fields, however the program that made it wrote them."""

import json
from collections.abc import Mapping
from math import isfinite
from typing import cast

INFOTEXT = "parameters"
"""The field with A1111's text: prompt, `Negative prompt:`, and a last line that starts with `Steps:`."""


def parse_json(text: str) -> dict[str, object]:
    """Parse a JSON object from untrusted text; empty if the text is anything else or has infinities or NaN."""
    try:
        value: object = json.loads(text, parse_constant=_parse_finite, parse_float=_parse_finite)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _parse_finite(text: str) -> float:
    if not isfinite(value := float(text)):
        raise ValueError(f"{text} is not JSON")
    return value


def read_settings(fields: Mapping[str, str]) -> dict[str, object]:
    """Return the Comment, with `prompt` from another field if it has none; empty if no field says anything.

    NovelAI's files of 2022 have the prompt in the Description alone. Of A1111's text only the prompts are read, because
    its samplers and schedules have other names.
    """
    comment, infotext = parse_json(fields.get("Comment", "")), fields.get(INFOTEXT, "")
    if isinstance(comment.get("prompt"), str):
        return comment
    if not comment and is_infotext(infotext):
        return parse_infotext(infotext)
    description = fields.get("Description", "")
    return comment | ({"prompt": description} if description else {})


def is_infotext(text: str) -> bool:
    """Return whether a text has the form of A1111's."""
    return "\nSteps: " in f"\n{text}"


def parse_infotext(text: str) -> dict[str, object]:
    """Return the prompts in A1111's text, with the keys of a Comment."""
    prompts, _, _ = "\n".join(["", *text.splitlines()]).rpartition("\nSteps: ")
    positive, _, negative = prompts.partition("\nNegative prompt:")
    return {"prompt": positive.strip(), "uc": negative.strip()}
