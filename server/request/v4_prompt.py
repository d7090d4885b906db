"""The structured prompts of NAI's V4 models: reading them, and flattening them to one text."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import cast

from pipelines.text.nai4 import join_captions
from server.errors import Rejected, shorten
from server.request.schema import LONGEST_TEXT, clean_text, to_number

V4_PROMPTS = ("v4_prompt", "v4_negative_prompt")
"""Keys of the structured prompts in requests and in Comments."""
FLAGS = {"true": True, "1": True, "false": False, "0": False}
TYPE_NAMES = {dict: "an object", list: "an array", str: "a text"}


@dataclass(frozen=True, slots=True)
class Caption:
    """A character's caption, and the first of its centers, if it has any, as shares of width and height."""

    text: str
    center: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class StructuredPrompt:
    """A structured prompt; `uses_places` and `uses_order` tell whether its characters' centers and order are used."""

    base: str
    characters: tuple[Caption, ...]
    uses_places: bool
    uses_order: bool

    def list_texts(self) -> list[str]:
        """Return the base caption and the characters', empty where they are missing.

        The characters are in the order of the list, unless only their places count: then they are sorted from left to
        right, and those without a place come last.
        """
        characters = list(self.characters)
        if self.uses_places and not self.uses_order:
            characters.sort(key=lambda caption: caption.center or (inf, inf))
        return [self.base, *(caption.text for caption in characters)]


def flatten_v4_prompt(prompt: object, field: str, syntax: str = "nai4") -> str:
    """Return the base caption and the character captions in their order, joined by commas.

    In NAI V4's syntax, emphasis that a caption leaves open ends with it, and lettering (`text:`) is moved to the end.
    Any part may be missing or null. `field` is the prompt's name in errors.

    Raises:
        Rejected: a part has the wrong type, or the text is longer than LONGEST_TEXT.
    """
    return join_texts(read_v4_prompt(prompt, field).list_texts(), field, syntax)


def join_texts(texts: Sequence[str], field: str, syntax: str) -> str:
    """Return captions as one text, without empty ones; raise as above."""
    captions = [text for text in texts if text]
    text = join_captions(captions) if syntax == "nai4" else ", ".join(captions)
    if len(text) > LONGEST_TEXT:
        raise Rejected(field, f"{len(text)} characters; at most {LONGEST_TEXT}")
    return text


def read_v4_prompt(value: object, field: str) -> StructuredPrompt:
    """Read a structured prompt; raise Rejected for a part of the wrong type."""
    prompt, caption_field = _read_object(value, field), f"{field}.caption"
    caption = _read_object(prompt.get("caption"), caption_field)
    base = _read_text(caption.get("base_caption"), f"{caption_field}.base_caption")
    entries = _check_type(caption.get("char_captions"), list, f"{caption_field}.char_captions")
    uses_places = _read_flag(prompt.get("use_coords"), f"{field}.use_coords", default=False)
    uses_order = _read_flag(prompt.get("use_order"), f"{field}.use_order", default=True)
    characters = (
        _read_character(entry, f"{caption_field}.char_captions.{number}", uses_places)
        for number, entry in enumerate(cast("list[object]", entries or []))
    )
    return StructuredPrompt(base, tuple(characters), uses_places, uses_order)


def _read_character(value: object, field: str, has_place: bool) -> Caption:
    """Read a character; centers that do not count may hold anything."""
    entry = _read_object(value, field)
    text = _read_text(entry.get("char_caption"), f"{field}.char_caption")
    return Caption(text, _read_center(entry.get("centers"), f"{field}.centers") if has_place else None)


def build_v4_prompt(captions: Sequence[str]) -> dict[str, object]:
    """Return a structured prompt with these captions, the first of which is the base."""
    base, *characters = captions
    return {
        "caption": {"base_caption": base, "char_captions": [{"char_caption": text} for text in characters]}
    }


def _read_center(value: object, field: str) -> tuple[float, float] | None:
    """Return x and y of the first center, or None if there is none."""
    if not value:
        return None
    if not isinstance(value, list):
        raise Rejected(field, f'{shorten(value)} is not an array like [{{"x": 0.3, "y": 0.5}}]')
    sides = _read_object(cast("list[object]", value)[0], f"{field}.0")
    if not sides:
        return None
    return _read_side(sides.get("x"), f"{field}.0.x"), _read_side(sides.get("y"), f"{field}.0.y")


def _read_side(value: object, field: str) -> float:
    """Read a share of a side; numbers may be texts, as in other fields."""
    number = to_number(value)
    if number is None or not 0 <= number <= 1:
        raise Rejected(field, f"{shorten(value)} is not a share of the image, a number from 0 to 1")
    return number


def _read_flag(value: object, field: str, *, default: bool) -> bool:
    """Read a boolean, also as a text or a number, as in other fields."""
    if value is None:
        return default
    text = str(value).lower()
    if text not in FLAGS or isinstance(value, float):
        raise Rejected(field, f"{shorten(value)} is not true or false")
    return FLAGS[text]


def _read_object(value: object, field: str) -> dict[str, object]:
    return cast("dict[str, object]", _check_type(value, dict, field) or {})


def _read_text(value: object, field: str) -> str:
    return cast("str", clean_text(_check_type(value, str, field) or "")).strip()


def _check_type(value: object, expected: type, field: str) -> object:
    if value is not None and not isinstance(value, expected):
        raise Rejected(field, f"{shorten(value)} is not {TYPE_NAMES[expected]}")
    return value
