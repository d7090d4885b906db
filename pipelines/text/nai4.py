"""The prompt syntax of NAI V4 and later, as NAI's page reads it.

`N::` sets the weight of the following text to N, which may be 0 or negative; `::` without a number sets it to 1. Both
end the effect of the brackets before them; brackets after them multiply as in V3.
`|` separates the base prompt from the characters' prompts, which an SDXL model reads as one text. Bars in pairs, `||`,
and what they enclose do not separate. `text:` begins the lettering of an image; no text encoder here can use it.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, zip_longest

from pipelines.text.runs import EMPHASIS, Run, Segment, clamp, merge_runs, parse_number

MOST_CAPTIONS = 6
"""Captions that bars separate; further bars are text."""
BARS = re.compile(r"\|\|.*?(?:\|\||\Z)|[^|]+|\|", re.DOTALL)
MARK = re.compile(r"(::|[{}\[\]])")
LETTERING = re.compile(r"(?:^|[\s,.:\[\]{}])(?=text:(?!:))", re.IGNORECASE)
DIGITS = "0123456789"
LOOSE = ", \t\r\n"
SEPARATOR = ", "
RESET = " ::"
"""Ends emphasis; with the space, because a number before `::` would set a weight."""


def parse_nai4(text: str) -> tuple[Segment, ...]:
    """Parse the syntax of NAI V4, as one segment; the weight is reset to 1 after each `|`."""
    captions = [list(_split_emphasis(caption)) for caption in split_captions(text)]
    filled = [runs for runs in captions if any(text.strip() for text, _ in runs)]
    joined = chain.from_iterable([(SEPARATOR, 1.0), *runs] for runs in filled)
    return (Segment(1.0, merge_runs(list(joined)[1:])),)


def exchange_negatives(own: tuple[Segment, ...], other: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """Return a prompt as it is encoded: without text of weight 0, and with that of negative weight in the other prompt.

    Guidance leads away from the negative prompt. A negative factor of an embedding does not: on the demo model
    `-2::red background::` made more backgrounds red than no such tag.
    """
    kept = _drop_runs(own[0].runs)
    moved = [(text.strip(LOOSE), -weight) for text, weight in other[0].runs if weight < 0]
    runs = [run for pair in moved if pair[0] for run in ((SEPARATOR, 1.0), pair)]
    return (Segment(1.0, merge_runs([*kept, *runs] if kept else runs[1:])),)


def _drop_runs(runs: Iterable[Run]) -> list[Run]:
    """Return the runs of positive weight, without the commas that separated others from them."""
    kept: list[Run] = []
    is_after_gap = False
    for text, weight in runs:
        if weight <= 0:
            is_after_gap = True
            continue
        is_separated = not kept or kept[-1][0].rstrip().endswith(",")
        rest = text.lstrip(LOOSE) if is_after_gap and is_separated else text
        if rest:
            kept.append((rest, weight))
            is_after_gap = False
    if is_after_gap and kept:
        kept[-1] = kept[-1][0].rstrip(LOOSE), kept[-1][1]
    return kept


def split_captions(text: str) -> list[str]:
    """Return the base prompt and the characters' prompts; those beyond MOST_CAPTIONS stay in the last one."""
    captions: list[list[str]] = [[]]
    for piece in BARS.findall(text):
        if piece == "|" and len(captions) < MOST_CAPTIONS:
            captions.append([])
        else:
            captions[-1].append(piece)
    return ["".join(pieces) for pieces in captions]


def split_lettering(caption: str) -> tuple[str, str]:
    """Return a caption up to its first `text:`, and the lettering from there on; empty if there is none."""
    found = LETTERING.search(caption)
    return (caption[: found.end()], caption[found.end() :]) if found else (caption, "")


def strip_lettering(text: str) -> str:
    """Return a prompt without the lettering of its captions, and without the comma before it."""
    captions = [(caption, *split_lettering(caption)) for caption in split_captions(text)]
    return "|".join(kept.rstrip(LOOSE) if lettering else caption for caption, kept, lettering in captions)


def join_captions(captions: Sequence[str]) -> str:
    """Return captions as one text without bars: emphasis ends with its caption, and all lettering is at the end."""
    split = [split_lettering(caption) for caption in captions]
    kept = [text.rstrip(LOOSE) if lettering else text for text, lettering in split]
    closed = [text if index == len(kept) - 1 else _end_emphasis(text) for index, text in enumerate(kept)]
    return SEPARATOR.join(part for part in (*closed, *(lettering for _, lettering in split)) if part)


def _end_emphasis(caption: str) -> str:
    *_, (_, weight) = _split_emphasis(caption)
    return caption if weight == 1 else caption + RESET


def _split_emphasis(text: str) -> Iterator[Run]:
    """Yield the text before each mark, and after the last one, with its weight."""
    base, level = 1.0, 0
    pieces = MARK.split(text)
    for piece, mark in zip_longest(pieces[::2], pieces[1::2], fillvalue=""):
        kept, number = _split_number(piece) if mark == "::" else (piece, "")
        yield kept, clamp(base * 1.05 ** min(level, 1000))
        if mark == "::":
            base, level = parse_number(number) if number else 1.0, 0
        else:
            level += EMPHASIS.get(mark, 0)


def _split_number(text: str) -> tuple[str, str]:
    """Split off the number at the end of a text; it is empty if there is none."""
    head = text.rstrip(DIGITS)
    if head.endswith("."):
        head = head[:-1].rstrip(DIGITS)
    if not text[len(head) :].strip("."):
        return text, ""  # a sentence's period, not a number
    head = head[:-1] if head.endswith(("-", "+")) else head
    return head, text[len(head) :]
