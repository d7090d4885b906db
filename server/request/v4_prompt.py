"""The structured prompts of NAI's V4 models as one text, which is all that an SDXL model can read."""

from typing import cast

from server.errors import Rejected, shorten
from server.request.schema import LONGEST_TEXT, clean_text

KINDS = {dict: "an object", list: "an array", str: "a text"}


def flatten_v4_prompt(prompt: object, field: str) -> str:
    """The base caption, then each character's, in their order and joined by commas.

    Where characters stand is not read, and parts may be missing or null.

    Args:
        field: the prompt's own name in the request.

    Raises:
        Rejected: a part is of another kind than it must be, or the whole is too long.
    """
    inside = f"{field}.caption"
    caption = _table(_table(prompt, field).get("caption"), inside)
    texts = [_text(caption.get("base_caption"), f"{inside}.base_caption")]
    for number, entry in enumerate(_array(caption.get("char_captions"), f"{inside}.char_captions")):
        name = f"{inside}.char_captions.{number}"
        texts.append(_text(_table(entry, name).get("char_caption"), f"{name}.char_caption"))
    joined = ", ".join(text for text in texts if text)
    if len(joined) > LONGEST_TEXT:
        raise Rejected(field, f"{len(joined)} characters; at most {LONGEST_TEXT}")
    return joined


def _table(value: object, field: str) -> dict[str, object]:
    return cast("dict[str, object]", _of(dict, value, field) or {})


def _array(value: object, field: str) -> list[object]:
    return cast("list[object]", _of(list, value, field) or [])


def _text(value: object, field: str) -> str:
    return cast("str", clean_text(_of(str, value, field) or "")).strip()


def _of(kind: type, value: object, field: str) -> object:
    if value is not None and not isinstance(value, kind):
        raise Rejected(field, f"{shorten(value)} is not {KINDS[kind]}")
    return value
