"""Prompt syntax: emphasis as a running weight, and `|` as a mix of segments.

In NAI's syntax (V1 to V3) `{` and `]` multiply the weight of the following text by 1.05, `}` and `[` divide it by 1.05.
Brackets need not balance, and parentheses are literal. A trailing `:number` on a segment is its share of the mix.
The A1111 syntax, for models whose users write it: `(text:1.2)`, `(text)` = 1.1, `[text]` = 1 / 1.1, `\\(`.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pipelines.errors import InvalidPrompt, UnknownName

EMPHASIS = {"{": 1, "]": 1, "}": -1, "[": -1}
NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)"
"""Written so that matching a long run of digits takes linear, not quadratic, time."""
MIX = re.compile(rf":(-?{NUMBER})\s*$")
A1111 = re.compile(rf"\\[()\[\]\\]|:\s*([+-]?{NUMBER})\s*\)|[()\[\]]|[^\\()\[\]:]+|.", re.DOTALL)
MAX_WEIGHT = 1e6
"""Numbers and emphasis are clamped to this, because sums and products of larger ones could overflow."""

Run = tuple[str, float]


@dataclass(frozen=True, slots=True)
class Segment:
    """One part of a mix: its share, and its text as runs of equal weight (unclamped)."""

    mix: float
    runs: tuple[Run, ...]


def parse(text: str, syntax: str = "nai") -> tuple[Segment, ...]:
    """Parse a prompt. Any text is valid; the result has at least one segment."""
    if syntax not in SYNTAXES:
        raise UnknownName("prompt syntax", syntax, SYNTAXES)
    return SYNTAXES[syntax](text)


def mix_weights(segments: Sequence[Segment]) -> tuple[float, ...]:
    """Return each segment's signed share of the mix; their absolute values sum to 1. An empty segment has share 0.

    Raise InvalidPrompt if every segment of a mix has weight 0.
    """
    if len(segments) == 1:
        return (1.0,)
    mixes = [segment.mix if segment.runs else 0.0 for segment in segments]
    total = sum(map(abs, mixes))
    if not total:
        raise InvalidPrompt(
            "every part of the '|' mix has weight 0; give at least one part text and a weight other than 0"
        )
    return tuple(mix / total for mix in mixes)


def parse_nai(text: str) -> tuple[Segment, ...]:
    """Parse NAI's syntax; the weight is reset to 1 after each `|`."""
    if "|" not in text:
        return (Segment(1.0, _merge_runs(_split_emphasis(text))),)
    return tuple(_parse_segment(part) for part in text.split("|"))


def _parse_segment(part: str) -> Segment:
    share = MIX.search(part)
    text, mix = (part[: share.start()], _parse_number(share[1])) if share else (part, 1.0)
    return Segment(mix, _merge_runs(_split_emphasis(text)))


def _split_emphasis(text: str) -> Iterable[Run]:
    level = 0
    for piece in re.split(r"([{}\[\]])", text):
        if piece in EMPHASIS:
            level += EMPHASIS[piece]
        else:
            yield piece, min(1.05 ** min(level, 1000), MAX_WEIGHT)


def parse_a1111(text: str) -> tuple[Segment, ...]:
    """Parse A1111's syntax without AND, as one segment; brackets left open are closed at the end."""
    runs: list[Run] = []
    opened: list[tuple[str, int]] = []
    for token in A1111.finditer(text):
        piece, number = token[0], token[1]
        if piece in ("(", "["):
            opened.append((piece, len(runs)))
        elif number and opened and opened[-1][0] == "(":
            _scale_weights(runs, opened.pop()[1], _parse_number(number))
        elif piece == ")" and opened and opened[-1][0] == "(":
            _scale_weights(runs, opened.pop()[1], 1.1)
        elif piece == "]" and opened and opened[-1][0] == "[":
            _scale_weights(runs, opened.pop()[1], 1 / 1.1)
        else:
            runs.append((piece[-1] if piece[0] == "\\" and len(piece) == 2 else piece, 1.0))
    for bracket, start in reversed(opened):
        _scale_weights(runs, start, 1.1 if bracket == "(" else 1 / 1.1)
    return (Segment(1.0, _merge_runs(runs)),)


def _parse_number(text: str) -> float:
    return min(max(float(text), -MAX_WEIGHT), MAX_WEIGHT)


def _scale_weights(runs: list[Run], start: int, factor: float) -> None:
    runs[start:] = [(text, weight * factor) for text, weight in runs[start:]]


def _merge_runs(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Merge adjacent runs of equal weight and drop empty ones."""
    merged: list[Run] = []
    for text, weight in runs:
        if text and merged and merged[-1][1] == weight:
            merged[-1] = merged[-1][0] + text, weight
        elif text:
            merged.append((text, weight))
    return tuple(merged)


SYNTAXES: dict[str, Callable[[str], tuple[Segment, ...]]] = {"nai": parse_nai, "a1111": parse_a1111}
