"""Parsing JSON from an unknown sender in bounded time and memory.

Long strings, which hold images, are cut out before the rest is parsed. So `json` need not copy them, at four bytes a
character if there is one emoji anywhere, and what remains is small enough to be limited by its length and its elements.
"""

import json
from collections.abc import Iterator
from secrets import token_hex
from typing import cast

from server.api.memory import MIB
from server.errors import BodyTooLarge, Rejected

LONG = 4096
"""Bytes above which a string is cut out."""
MOST_ELEMENTS = 100_000
"""Commas and brackets besides those in long strings; real requests have fewer than 10,000."""
MOST_QUOTES = 2 * MOST_ELEMENTS
LARGEST_REST = 4 * MIB
MOST_ESCAPES = 2_000_000
"""Backslashes of a string; a Base64 of 60 MB has 1,600,000 if its lines are broken every 76 characters."""
LONGEST_TEXT = MIB
"""Bytes of a string that is not ASCII; the longest prompt has 40,000 characters."""

Span = tuple[int, int]


def parse_json_object(body: bytes | bytearray) -> dict[str, object]:
    """Return a JSON object; if a key is repeated, its last value counts.

    Raises:
        BodyTooLarge: too much of it is not the content of long ASCII strings.
        Rejected: it is not a JSON object, or has too many elements.
    """
    try:
        value = _parse(body)
    except (ValueError, RecursionError):
        raise Rejected("body", "is not JSON in UTF-8, or nested too deeply") from None
    if not isinstance(value, dict):
        raise Rejected("body", "must be a JSON object")
    return cast("dict[str, object]", value)


def _parse(body: bytes | bytearray) -> object:
    view, position = memoryview(body), 3 if body.startswith(b"\xef\xbb\xbf") else 0
    marker, texts, rest = token_hex(16), list[str](), bytearray()
    for start, end in _find_long_strings(body) if len(body) > LONG else ():
        rest += view[position:start]
        rest += f"{marker}{len(texts)}".encode()
        texts.append(_decode_string(view[start:end]))
        position = end
    _check_size(len(rest) + len(body) - position)
    rest += view[position:]
    if rest.count(b",") + rest.count(b"[") + rest.count(b"{") > MOST_ELEMENTS:
        raise Rejected("body", f"has more than {MOST_ELEMENTS} elements, or is nested too deeply")
    value: object = json.loads(rest.decode())
    return _restore(value, marker, texts) if texts else value


def _check_size(size: int) -> None:
    if size > LARGEST_REST:
        raise BodyTooLarge(f"the body has more than {LARGEST_REST // MIB} MiB besides its long texts")


def _find_long_strings(body: bytes | bytearray) -> Iterator[Span]:
    """Yield where the contents of long strings begin and end."""
    position, quotes = 0, 0
    while (start := body.find(b'"', position) + 1) > 0:
        end, quotes = start, quotes + 1
        while (found := body.find(b'"', end)) >= 0 and _is_escaped(body, end, found):
            end, quotes = found + 1, quotes + 1
            _check_quotes(quotes)
        _check_quotes(quotes)
        if found < 0:  # the string has no end, which the parser refuses
            return
        if found - start > LONG:
            yield start, found
        position = found + 1


def _is_escaped(body: bytes | bytearray, start: int, quote: int) -> bool:
    """Return whether an odd number of backslashes, at or after `start`, stands before a quote."""
    if quote == start or body[quote - 1] != ord("\\"):
        return False
    before = body[start:quote]
    return (len(before) - len(before.rstrip(b"\\"))) % 2 == 1


def _check_quotes(quotes: int) -> None:
    if quotes > MOST_QUOTES:
        raise Rejected("body", f"has more than {MOST_ELEMENTS} texts")


def _decode_string(content: memoryview) -> str:
    """Return the string with this content between its quotes."""
    try:
        text = str(content, "ascii")
    except UnicodeDecodeError:
        if len(content) > LONGEST_TEXT:
            raise BodyTooLarge(f"the body has a text of more than {LONGEST_TEXT // MIB} MiB") from None
        text = str(content, "utf-8")
    escapes = sum(piece.count("\\") for piece in _iter_pieces(text))
    if escapes > MOST_ESCAPES:
        raise BodyTooLarge(f"the body has a text with more than {MOST_ESCAPES} escapes")
    # a string without escapes and control characters is its content; `json` would copy it twice
    is_plain = not escapes and all(piece.isprintable() for piece in _iter_pieces(text))
    return text if is_plain else json.loads(f'"{text}"')


def _iter_pieces(text: str) -> Iterator[str]:
    """Yield a text in pieces: to search 60 MB at once would keep all other threads waiting for half a second."""
    return (text[start : start + MIB] for start in range(0, len(text), MIB))


def _restore(value: object, marker: str, texts: list[str]) -> object:
    """Return a parsed value with the long strings in place of their markers."""
    if isinstance(value, str):
        return texts[int(value[len(marker) :])] if value.startswith(marker) else value
    if isinstance(value, list):
        return [_restore(item, marker, texts) for item in cast("list[object]", value)]
    if isinstance(value, dict):
        items = cast("dict[str, object]", value).items()
        return {_restore(key, marker, texts): _restore(item, marker, texts) for key, item in items}
    return value
