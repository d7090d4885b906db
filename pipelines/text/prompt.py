"""Prompt syntax: emphasis as a running weight, and `|` between segments.

In NAI's syntax (V1 to V3) `{` and `]` multiply the weight of the following text by 1.05, `}` and `[` divide it by 1.05.
Brackets need not balance, and parentheses are literal. A trailing `:number` on a segment is its share of the mix.
The syntax of NAI V4 and later is in `pipelines.text.nai4`.
The A1111 syntax, for models whose users write it: `(text:1.2)`, `(text)` = 1.1, `[text]` = 1 / 1.1, `\\(`.
The syntax "nai+a1111" is NAI's, in which `(text:1.2)` and `\\(` are A1111's, and other parentheses are text.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pipelines.errors import InvalidPrompt, UnknownName
from pipelines.job import Prompts
from pipelines.text.nai4 import (
    exchange_negatives,
    join_captions,
    parse_nai4,
    split_captions,
    strip_lettering,
)
from pipelines.text.runs import EMPHASIS, MAX_WEIGHT, Run, Segment, clamp, merge_runs, parse_number

NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)"
"""Written so that matching a long run of digits takes linear, not quadratic, time."""
MIX = re.compile(rf":(-?{NUMBER})\s*$")
A1111 = re.compile(rf"\\[()\[\]\\]|:\s*([+-]?{NUMBER})\s*\)|[()\[\]]|[^\\()\[\]:]+|.", re.DOTALL)
EXPLICIT = re.compile(rf"\\[()]|:\s*([+-]?{NUMBER})\s*\)|[()]|[^\\():]+|.", re.DOTALL)
LARGEST_PRODUCT = 1e300
CLOSING = {"(": ")", "[": "]"}


@dataclass(slots=True)
class _Bracket:
    """An opening bracket, and the factor of the text up to where it is closed, which may stand there."""

    opening: str
    factor: float


def parse(text: str, syntax: str = "nai") -> tuple[Segment, ...]:
    """Parse a prompt. Any text is valid; the result has at least one segment."""
    if syntax not in SYNTAXES:
        raise UnknownName("prompt syntax", syntax, SYNTAXES)
    return SYNTAXES[syntax](text)


def parse_pair(
    positive: str, negative: str, syntax: str = "nai"
) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
    """Parse a prompt and a negative prompt to what is encoded of them."""
    if syntax == "nai4":
        prompt, negative_prompt = parse_nai4(strip_lettering(positive)), parse_nai4(negative)
        return exchange_negatives(prompt, negative_prompt), exchange_negatives(negative_prompt, prompt)
    return parse(positive, syntax), parse(negative, syntax)


def split_segments(text: str, syntax: str) -> list[str]:
    """Return the texts that bars separate in a syntax; joined by bars they are the prompt again."""
    if syntax == "nai4":
        return split_captions(text)
    return [text] if syntax == "a1111" else text.split("|")


def list_prompt_pairs(prompts: Prompts) -> list[tuple[tuple[Segment, ...], tuple[Segment, ...]]]:
    """Return the parsed prompt and negative prompt of the base, then those in the region of each character."""
    syntax, pairs = prompts.syntax, [(prompts.positive, prompts.negative)]
    pairs += [
        (
            append_caption(prompts.positive, character.positive, syntax),
            append_caption(prompts.negative, character.negative, syntax),
        )
        for character in prompts.characters
    ]
    return [parse_pair(*pair, syntax) for pair in pairs]


def append_caption(text: str, caption: str, syntax: str) -> str:
    """Return a prompt with a caption added to each of its segments, before the segment's share of the mix."""
    if not caption.strip():
        return text
    if syntax == "nai4":
        return join_captions([part for part in (text, caption) if part.strip()])
    segments = split_segments(text, syntax)
    return "|".join(_append_to_segment(segment, caption, len(segments) > 1) for segment in segments)


def split_share(segment: str) -> tuple[str, str]:
    """Return a segment of a mix without its share, and the text of the share; empty if it has none."""
    share = MIX.search(segment)
    return (segment[: share.start()], share[0]) if share else (segment, "")


def _append_to_segment(segment: str, caption: str, is_mix: bool) -> str:
    body, tail = split_share(segment) if is_mix else (segment, "")
    if not body.strip():
        return segment if is_mix else caption
    return f"{body.rstrip()}, {caption}{tail}"


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
    return _parse_mix(text, lambda part: ((part, 1.0),))


def parse_nai_a1111(text: str) -> tuple[Segment, ...]:
    """Parse NAI's syntax with A1111's explicit weights."""
    return _parse_mix(text, _split_explicit)


def _parse_mix(text: str, split: Callable[[str], Iterable[Run]]) -> tuple[Segment, ...]:
    if "|" not in text:
        return (Segment(1.0, merge_runs(_split_emphasis(split(text)))),)
    return tuple(_parse_segment(part, split) for part in text.split("|"))


def _parse_segment(part: str, split: Callable[[str], Iterable[Run]]) -> Segment:
    share = MIX.search(part)
    text, mix = (part[: share.start()], parse_number(share[1])) if share else (part, 1.0)
    return Segment(mix, merge_runs(_split_emphasis(split(text))))


def _split_emphasis(runs: Iterable[Run]) -> Iterable[Run]:
    level = 0
    for text, weight in runs:
        for piece in re.split(r"([{}\[\]])", text):
            if piece in EMPHASIS:
                level += EMPHASIS[piece]
            else:
                yield piece, clamp(weight * min(1.05 ** min(level, 1000), MAX_WEIGHT))


def _split_explicit(text: str) -> Iterable[Run]:
    """Split at `(text:number)`; a parenthesis that no number closes is text."""
    pieces: list[str | _Bracket | None] = []
    opened: list[int] = []
    for token in EXPLICIT.finditer(text):
        piece, number = token[0], token[1]
        if number and opened:
            pieces[opened.pop()] = _Bracket("(", parse_number(number))
            pieces.append(None)
            continue
        if piece == "(":
            opened.append(len(pieces))
        elif piece == ")" and opened:
            opened.pop()
        pieces.append(piece[-1] if piece in ("\\(", "\\)") else piece)
    return _weight_pieces(pieces)


def parse_a1111(text: str) -> tuple[Segment, ...]:
    """Parse A1111's syntax without AND, as one segment; brackets left open are closed at the end."""
    pieces: list[str | _Bracket | None] = []
    opened: list[_Bracket] = []
    for token in A1111.finditer(text):
        piece, number = token[0], token[1]
        innermost = opened[-1].opening if opened else ""
        if piece in ("(", "["):
            opened.append(_Bracket(piece, 1.1 if piece == "(" else 1 / 1.1))
            pieces.append(opened[-1])
        elif piece == CLOSING.get(innermost) or (number and innermost == "("):
            bracket = opened.pop()
            bracket.factor = parse_number(number) if number else bracket.factor
            pieces.append(None)
        else:
            pieces.append(piece[-1] if piece[0] == "\\" and len(piece) == 2 else piece)
    return (Segment(1.0, merge_runs(_weight_pieces(pieces))),)


def _weight_pieces(pieces: Iterable[str | _Bracket | None]) -> Iterable[Run]:
    """Yield each text with the product of the brackets around it; None closes the innermost one."""
    weights = [1.0]
    for piece in pieces:
        if isinstance(piece, str):
            yield piece, weights[-1]
        elif piece is None:
            weights.pop()
        else:  # clamped, because infinity times a factor of 0 is not a number
            weights.append(min(max(weights[-1] * piece.factor, -LARGEST_PRODUCT), LARGEST_PRODUCT))


SYNTAXES: dict[str, Callable[[str], tuple[Segment, ...]]] = {
    "nai": parse_nai,
    "nai4": parse_nai4,
    "a1111": parse_a1111,
    "nai+a1111": parse_nai_a1111,
}
