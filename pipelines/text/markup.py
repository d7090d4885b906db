"""The tags of a prompt, apart from the emphasis around them: those of `{{smile, hat}}` are `smile` and `hat`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pipelines.text.prompt import NUMBER
from pipelines.text.runs import EMPHASIS

BEFORE = {
    "nai": re.compile(r"[\s{}\[\]]*"),
    "nai4": re.compile(rf"(?:[\s{{}}\[\]]|(?:[+-]?{NUMBER})?::)*"),
    "a1111": re.compile(r"[\s(\[]*"),
    "nai+a1111": re.compile(r"[\s{}\[\](]*"),
}
"""Emphasis that may stand before a tag, in each prompt syntax."""
AFTER_REVERSED = {
    "nai": re.compile(r"[\s{}\[\]]*"),
    "nai4": re.compile(r"(?:[\s{}\[\]]|::)*"),
    "a1111": re.compile(rf"(?:\)\s*{NUMBER}[+-]?\s*:|[\s)\]](?!\\))*"),
    "nai+a1111": re.compile(rf"(?:\)\s*{NUMBER}[+-]?\s*:|[\s{{}}\[\]])*"),
}
"""Emphasis that may stand after a tag, read from the end: a search for the end of a long text would be quadratic."""
WEIGHTED = re.compile(rf"\((.+):{NUMBER}\)", re.DOTALL)
DIGITS = tuple("0123456789.")


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag between two commas: the space and the emphasis before it, its name, and what is after it."""

    space: str
    before: str
    name: str
    after: str

    @property
    def has_weight(self) -> bool:
        """Whether a parenthesis opens or closes at the tag, in a syntax in which these are emphasis."""
        return "(" in self.before or ")" in self.after

    @property
    def is_closed(self) -> bool:
        """Whether the emphasis around the tag concerns no other tag."""
        level = sum(EMPHASIS.get(character, 0) for character in self.before + self.after)
        has_marks = "::" in self.before, "::" in self.after
        return not level and has_marks[0] == has_marks[1] and self.before.count("(") == self.after.count(")")


def read_tag(text: str, syntax: str) -> Tag:
    """Return what stands between two commas of a prompt as a tag; joined again its parts are the text."""
    before = _match_start(BEFORE[syntax], text)
    rest = text[len(before) :]
    after = _match_start(AFTER_REVERSED[syntax], rest[::-1])[::-1]
    space = before[: len(before) - len(before.lstrip())]
    return Tag(space, before[len(space) :], rest[: len(rest) - len(after)], after)


def join_tags(tags: Iterable[tuple[Tag, str | None]]) -> str:
    """Return tags with other names; one whose name is None is left out, except emphasis that concerns other tags."""
    pieces: list[str] = []
    opening, first_space = "", None
    for tag, name in tags:
        first_space = tag.space if first_space is None else first_space
        if name is not None:
            text = (tag.space if pieces else first_space) + opening + tag.before + name
            pieces.append(text + tag.after if name == tag.name else _append(text, tag.after))
            opening = ""
        elif not tag.is_closed:
            if pieces and not tag.before:
                pieces[-1] = _append(pieces[-1], tag.after.rstrip())
            else:
                opening += tag.before + tag.after.rstrip()
    if not pieces:
        return opening
    return _append(",".join(pieces), opening)


def fold_tag(name: str) -> str:
    """Return a tag's name as names are compared: in lower case, with single spaces for spaces and underscores."""
    return " ".join(name.lower().replace("_", " ").split())


def strip_weight(text: str) -> str:
    """Return the tag in `(tag:1.5)`; anything else as it is."""
    found = WEIGHTED.fullmatch(text)
    return found[1] if found else text


def _append(text: str, emphasis: str) -> str:
    """Return a text followed by emphasis; digits in front of `::` would be a weight."""
    gap = " " if emphasis.startswith("::") and text.endswith(DIGITS) else ""
    return text + gap + emphasis


def _match_start(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.match(text)
    return found[0] if found else ""
