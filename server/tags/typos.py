"""Names that begin like a query with one or two typos: a letter too many, missing, wrong, or swapped with the next.

A short query may have one: its variants are looked up. A longer one may have two: names that share enough pairs of
neighboring letters with it, at about the same position, are compared with it by dynamic programming.
"""

import numpy as np
from numpy.typing import NDArray

from server.tags.index import Ints, TagIndex

SHORTEST = 4
"""Letters from which a query may have a typo; a shorter one resembles half of all tags."""
LONG = 8
"""Letters from which it may have two."""
LONGEST = 32
PAIRS = 12
"""Pairs of letters at the beginning of a name that are indexed."""
SHIFT = 2
"""How far two typos move a letter."""
POSITION_BITS = 4
Bytes = NDArray[np.uint8]


class TypoIndex:
    """Finds the names that begin like a query."""

    def __init__(self, index: TagIndex) -> None:
        self._index = index
        names = index.names
        self._alphabet = [bytes([byte]) for byte in np.unique(names.buffer).tolist() if 0 < byte < 0x80]
        windows = np.lib.stride_tricks.sliding_window_view(names.buffer, PAIRS + 1)
        letters = windows[names.starts[:-1]]
        positions = np.arange(PAIRS, dtype=np.uint32)
        codes = (letters[:, :-1].astype(np.uint32) << 8 | letters[:, 1:]) << POSITION_BITS | positions
        is_inside = np.logical_and.accumulate(letters[:, 1:] != 0, axis=1) & (letters[:, :1] != 0)
        rows, columns = np.nonzero(is_inside)
        pairs = codes[rows, columns]
        order = np.argsort(pairs, kind="stable")
        self._names = rows[order].astype(np.int32)
        self._pairs, self._offsets = np.unique(pairs[order], return_index=True)
        self._offsets = np.append(self._offsets, len(pairs)).astype(np.int32)

    def find_similar(self, query: bytes, limit: int) -> list[tuple[int, int]]:
        """Return the tags whose name or alias begins like a query, with the number of typos, fewest first."""
        if len(query) < SHORTEST:
            return []
        if len(query) < LONG:
            return [(tag, 1) for tag in self._index.find_best(self._find_variants(query), limit)]
        names, typos = self._compare(query[:LONGEST], self._find_candidates(query))
        found: dict[int, int] = {}
        for count in (1, 2):
            # a name's first word is its entry of the best rank
            best = self._index.find_best_names(names[typos == count], limit)
            found = {**dict.fromkeys(best, count), **found}
        return sorted(found.items(), key=lambda item: item[1])[:limit]

    def _find_variants(self, query: bytes) -> Ints:
        """Return the names that begin with a query after one change of it."""
        cuts = [(query[:position], query[position:]) for position in range(len(query) + 1)]
        variants = {head + tail[1:] for head, tail in cuts[:-1]}
        variants |= {head + tail[1:2] + tail[:1] + tail[2:] for head, tail in cuts[:-2]}
        variants |= {head + letter + tail[1:] for head, tail in cuts[:-1] for letter in self._alphabet}
        variants |= {head + letter + tail for head, tail in cuts for letter in self._alphabet}
        return self._index.find_names(sorted(variants - {query, query[:-1]}))

    def _find_candidates(self, query: bytes) -> Ints:
        """Return the names that share enough pairs of letters with the beginning of a query."""
        letters = np.frombuffer(query[: PAIRS + 1], np.uint8).astype(np.uint32)
        pairs = (letters[:-1] << 8 | letters[1:]) << POSITION_BITS
        positions = np.arange(len(pairs), dtype=np.uint32)
        low = pairs | np.maximum(positions, SHIFT) - SHIFT
        high = pairs | np.minimum(positions + SHIFT, PAIRS - 1)
        first = self._offsets[np.searchsorted(self._pairs, low)]
        last = self._offsets[np.searchsorted(self._pairs, high, side="right")]
        found = np.concatenate([self._names[start:stop] for start, stop in zip(first, last, strict=True)])
        shared = np.bincount(found, minlength=len(self._index.names.tags))
        return np.flatnonzero(shared >= max(2, len(pairs) - 2 * SHIFT)).astype(np.int32)

    def _compare(self, query: bytes, names: Ints) -> tuple[Ints, Bytes]:
        """Return the names that begin like a query with at most two typos, and how many each has."""
        buffer, width = self._index.names.buffer, len(query) + SHIFT
        starts = self._index.names.starts[names]
        positions = np.minimum(starts + np.arange(width, dtype=np.int32)[:, None], len(buffer) - 1)
        typos = count_typos(query, buffer[positions])
        is_similar = typos <= SHIFT
        return names[is_similar], typos[is_similar]


def count_typos(query: bytes, letters: Bytes) -> Bytes:
    """Return how many typos turn the best beginning of each name into a query; more than SHIFT are not exact.

    Row k of `letters` has the names' letters k: (width, names).

    This is the distance of optimal string alignment, computed in a band around the diagonal for all names at once.
    """
    names, band = letters.shape[1], 2 * SHIFT + 1
    far = np.full(names, 99, np.uint8)
    before: list[Bytes] = []
    last = [np.full(names, shift - SHIFT, np.uint8) if shift >= SHIFT else far for shift in range(band)]
    for row, letter in enumerate(query, 1):
        now: list[Bytes] = []
        for shift in range(band):
            column = row + shift - SHIFT
            if column < 0:
                now.append(far)
                continue
            if column == 0:
                now.append(np.full_like(far, row))
                continue
            cost: Bytes = last[shift] + (letters[column - 1] != letter)
            if shift + 1 < band:
                cost = np.minimum(cost, last[shift + 1] + 1)
            if shift:
                cost = np.minimum(cost, now[shift - 1] + 1)
            if row > 1 and column > 1:
                is_swap = (letters[column - 2] == letter) & (letters[column - 1] == query[row - 2])
                cost = np.where(is_swap, np.minimum(cost, before[shift] + 1), cost)
            now.append(cost.astype(np.uint8))
        before, last = last, now
    return np.minimum.reduce(last)
