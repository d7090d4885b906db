"""Flattening the structured prompts of NAI's V4 models to one text, as SDXL models need it."""

from collections.abc import Sequence
from typing import cast

from server.errors import Rejected, shorten
from server.request.schema import LONGEST_TEXT, clean_text

TYPE_NAMES = {dict: "an object", list: "an array", str: "a text"}


def flatten_v4_prompt(prompt: object, field: str) -> str:
    """Return the base caption and the character captions in their order, joined by commas.

    Character positions are ignored. Any part may be missing or null. `field` is the prompt's name in errors.

    Raises:
        Rejected: a part has the wrong type, or the text is longer than LONGEST_TEXT.
    """
    text = ", ".join(part for part in read_captions(prompt, field) if part)
    if len(text) > LONGEST_TEXT:
        raise Rejected(field, f"{len(text)} characters; at most {LONGEST_TEXT}")
    return text


def read_captions(prompt: object, field: str) -> list[str]:
    """Return the base caption and the character captions, empty where they are missing; raise as above."""
    caption_field = f"{field}.caption"
    caption = _read_object(_read_object(prompt, field).get("caption"), caption_field)
    texts = [_read_text(caption.get("base_caption"), f"{caption_field}.base_caption")]
    characters = _check_type(caption.get("char_captions"), list, f"{caption_field}.char_captions")
    for number, entry in enumerate(cast("list[object]", characters or [])):
        name = f"{caption_field}.char_captions.{number}"
        texts.append(_read_text(_read_object(entry, name).get("char_caption"), f"{name}.char_caption"))
    return texts


def build_v4_prompt(captions: Sequence[str]) -> dict[str, object]:
    """Return a structured prompt with these captions, the first of which is the base."""
    base, *characters = captions
    return {
        "caption": {"base_caption": base, "char_captions": [{"char_caption": text} for text in characters]}
    }


def _read_object(value: object, field: str) -> dict[str, object]:
    return cast("dict[str, object]", _check_type(value, dict, field) or {})


def _read_text(value: object, field: str) -> str:
    return cast("str", clean_text(_check_type(value, str, field) or "")).strip()


def _check_type(value: object, expected: type, field: str) -> object:
    if value is not None and not isinstance(value, expected):
        raise Rejected(field, f"{shorten(value)} is not {TYPE_NAMES[expected]}")
    return value
