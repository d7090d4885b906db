"""Flattening the structured prompts of NAI's V4 models to one text, as SDXL models need it."""

from collections.abc import Sequence
from math import inf, isfinite
from typing import cast

from pipelines.text.nai4 import join_captions
from server.errors import Rejected, shorten
from server.request.schema import LONGEST_TEXT, clean_text

TYPE_NAMES = {dict: "an object", list: "an array", str: "a text"}


def flatten_v4_prompt(prompt: object, field: str, syntax: str = "nai4") -> str:
    """Return the base caption and the character captions in their order, joined by commas.

    In NAI V4's syntax, emphasis that a caption leaves open ends with it, and lettering (`text:`) is moved to the end.
    Any part may be missing or null. `field` is the prompt's name in errors.

    Raises:
        Rejected: a part has the wrong type, or the text is longer than LONGEST_TEXT.
    """
    captions = [part for part in read_captions(prompt, field) if part]
    text = join_captions(captions) if syntax == "nai4" else ", ".join(captions)
    if len(text) > LONGEST_TEXT:
        raise Rejected(field, f"{len(text)} characters; at most {LONGEST_TEXT}")
    return text


def read_captions(value: object, field: str) -> list[str]:
    """Return the base caption and the character captions, empty where they are missing; raise as above.

    The characters are in the order of the list, unless `use_order` is false and `use_coords` is true: then they are
    sorted from left to right.
    """
    prompt, caption_field = _read_object(value, field), f"{field}.caption"
    caption = _read_object(prompt.get("caption"), caption_field)
    base = _read_text(caption.get("base_caption"), f"{caption_field}.base_caption")
    characters = _check_type(caption.get("char_captions"), list, f"{caption_field}.char_captions")
    entries, texts = list[dict[str, object]](), list[str]()
    for number, entry in enumerate(cast("list[object]", characters or [])):
        name = f"{caption_field}.char_captions.{number}"
        entries.append(_read_object(entry, name))
        texts.append(_read_text(entries[-1].get("char_caption"), f"{name}.char_caption"))
    indices = range(len(texts))
    if prompt.get("use_order") is False and prompt.get("use_coords") is True:
        indices = sorted(indices, key=lambda index: _read_center(entries[index].get("centers")))
    return [base, *(texts[index] for index in indices)]


def build_v4_prompt(captions: Sequence[str]) -> dict[str, object]:
    """Return a structured prompt with these captions, the first of which is the base."""
    base, *characters = captions
    return {
        "caption": {"base_caption": base, "char_captions": [{"char_caption": text} for text in characters]}
    }


def _read_center(value: object) -> tuple[float, float]:
    """Return x and y of the first of a character's centers; those of a malformed one come last."""
    center = cast("list[object]", value)[0] if isinstance(value, list) and value else None
    sides = cast("dict[str, object]", center) if isinstance(center, dict) else {}
    x, y = (side if _is_number(side := sides.get(key)) else inf for key in ("x", "y"))
    return cast("float", x), cast("float", y)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and isfinite(value)


def _read_object(value: object, field: str) -> dict[str, object]:
    return cast("dict[str, object]", _check_type(value, dict, field) or {})


def _read_text(value: object, field: str) -> str:
    return cast("str", clean_text(_check_type(value, str, field) or "")).strip()


def _check_type(value: object, expected: type, field: str) -> object:
    if value is not None and not isinstance(value, expected):
        raise Rejected(field, f"{shorten(value)} is not {TYPE_NAMES[expected]}")
    return value
