"""The grammar of prompts: emphasis as a running weight, `|` as a mix of segments.

In NAI's grammar (V1 to V3) `{` and `]` multiply the weight of what follows by 1.05, `}` and `[` divide it;
brackets need not balance, parentheses are literal. A trailing `:number` on a segment is its share in the mix.
The A1111 grammar, for models whose users write it: `(text:1.2)`, `(text)` = 1.1, `[text]` = 1 / 1.1, `\\(`.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pipelines.errors import InvalidPrompt, UnknownName

EMPHASIS = {"{": 1, "]": 1, "}": -1, "[": -1}
NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)"
"""Written so that a long row of digits is read once, not from each of its beginnings."""
MIX = re.compile(rf":(-?{NUMBER})\s*$")
A1111 = re.compile(rf"\\[()\[\]\\]|:\s*([+-]?{NUMBER})\s*\)|[()\[\]]|[^\\()\[\]:]+|.", re.DOTALL)
LARGEST = 1e6
"""Numbers and emphasis end here, as sums and products of larger ones could leave the floats."""

Run = tuple[str, float]


@dataclass(frozen=True, slots=True)
class Segment:
    """One side of a mix: its share, and its text in runs of equal weight (unclamped)."""

    mix: float
    runs: tuple[Run, ...]


def parse(text: str, syntax: str = "nai") -> tuple[Segment, ...]:
    """Read a prompt; any text is legal, and the result has at least one segment.

    Raises:
        UnknownName: there is no such syntax.
    """
    if syntax not in SYNTAXES:
        raise UnknownName("prompt syntax", syntax, SYNTAXES)
    return SYNTAXES[syntax](text)


def mix_weights(segments: Sequence[Segment]) -> tuple[float, ...]:
    """Each segment's signed share of a mix, their sizes together 1; one that says nothing has none.

    Raises:
        InvalidPrompt: every segment of a mix has weight 0.
    """
    if len(segments) == 1:
        return (1.0,)
    mixes = [segment.mix if segment.runs else 0.0 for segment in segments]
    total = sum(map(abs, mixes))
    if not total:
        raise InvalidPrompt("every part of the '|' mix has weight 0; at least one must have some")
    return tuple(mix / total for mix in mixes)


def parse_nai(text: str) -> tuple[Segment, ...]:
    """NAI's grammar; each `|` starts again at weight 1."""
    if "|" not in text:
        return (Segment(1.0, _merged(_braced(text))),)
    return tuple(_mixed(part) for part in text.split("|"))


def _mixed(part: str) -> Segment:
    found = MIX.search(part)
    text, mix = (part[: found.start()], _number(found[1])) if found else (part, 1.0)
    return Segment(mix, _merged(_braced(text)))


def _braced(text: str) -> Iterable[Run]:
    level = 0
    for piece in re.split(r"([{}\[\]])", text):
        if piece in EMPHASIS:
            level += EMPHASIS[piece]
        else:
            yield piece, min(1.05 ** min(level, 1000), LARGEST)


def parse_a1111(text: str) -> tuple[Segment, ...]:
    """A1111's grammar without AND: one segment. What is left open at the end weighs as if closed."""
    runs: list[Run] = []
    opened: list[tuple[str, int]] = []
    for token in A1111.finditer(text):
        piece, number = token[0], token[1]
        if piece in ("(", "["):
            opened.append((piece, len(runs)))
        elif number and opened and opened[-1][0] == "(":
            _scale(runs, opened.pop()[1], _number(number))
        elif piece == ")" and opened and opened[-1][0] == "(":
            _scale(runs, opened.pop()[1], 1.1)
        elif piece == "]" and opened and opened[-1][0] == "[":
            _scale(runs, opened.pop()[1], 1 / 1.1)
        else:
            runs.append((piece[-1] if piece[0] == "\\" and len(piece) == 2 else piece, 1.0))
    for bracket, start in reversed(opened):
        _scale(runs, start, 1.1 if bracket == "(" else 1 / 1.1)
    return (Segment(1.0, _merged(runs)),)


def _number(text: str) -> float:
    return min(max(float(text), -LARGEST), LARGEST)


def _scale(runs: list[Run], start: int, factor: float) -> None:
    runs[start:] = [(text, weight * factor) for text, weight in runs[start:]]


def _merged(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Join neighbours of equal weight and drop what is empty."""
    merged: list[Run] = []
    for text, weight in runs:
        if text and merged and merged[-1][1] == weight:
            merged[-1] = merged[-1][0] + text, weight
        elif text:
            merged.append((text, weight))
    return tuple(merged)


SYNTAXES: dict[str, Callable[[str], tuple[Segment, ...]]] = {"nai": parse_nai, "a1111": parse_a1111}
