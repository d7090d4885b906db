"""An index of tags by the beginnings of their names, of their aliases, and of the words in both.

Names are folded and kept as UTF-8 in one buffer. An entry is the position of a word in it. Entries are sorted by the
bytes from there on, so that those that begin with a query are neighbors. Each has a rank; tags with more images have
better ranks. numpy does the work, because it releases the interpreter's lock while a server runs.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.tags.table import Tag

KEY_BYTES = 24
"""Bytes by which entries are sorted; entries that agree in all of them are compared one by one."""
INNER_SHARE = ALIAS_SHARE = 0.25
"""What an image counts for a word inside a name, and for an alias: the beginning of the tag itself comes first."""
SEPARATORS = re.compile(r"[\s_]+")

Ints = NDArray[np.int32]


def fold(text: str) -> str:
    """Return a text as it is compared: lower case, compatible characters alike, spaces and underscores as one space."""
    return SEPARATORS.sub(" ", unicodedata.normalize("NFKC", text).lower()).strip()


@dataclass(frozen=True, slots=True)
class Names:
    """Folded names of all tags, then of all aliases, each after a zero byte, in one buffer.

    Attributes:
        starts: the position of each name in the buffer, and of its end.
        tags: the tag that each name belongs to.
        tag_count: the number of tags, which is also that of the names that are no aliases.
    """

    buffer: NDArray[np.uint8]
    starts: Ints
    tags: Ints
    tag_count: int


@dataclass(frozen=True, slots=True)
class Entries:
    """All words, sorted: their bytes, their position in the buffer, the name each belongs to, and its rank."""

    keys: NDArray[np.bytes_]
    positions: Ints
    names: Ints
    ranks: Ints


class TagIndex:
    """Finds the tags that begin with a text, or have a word that does."""

    def __init__(self, tags: Sequence[Tag]) -> None:
        self.tags = tags
        self.names = _collect_names(tags)
        self.entries = _sort_entries(self.names, np.array([tag.count for tag in tags], np.float64))
        is_first = self.names.starts[self.entries.names] == self.entries.positions
        self._first_entries = np.zeros(len(self.names.tags), np.int32)
        self._first_entries[self.entries.names[is_first]] = np.flatnonzero(is_first).astype(np.int32)

    def find_range(self, query: bytes) -> tuple[int, int]:
        """Return the first entry that begins with a query's first KEY_BYTES bytes, and the one after the last."""
        first = query[:KEY_BYTES]
        after = first + b"\xff" * (KEY_BYTES - len(first))
        keys = self.entries.keys
        return int(np.searchsorted(keys, first)), int(np.searchsorted(keys, after, side="right"))

    def find_entries(self, query: bytes) -> Ints:
        """Return all entries that begin with a query."""
        low, high = self.find_range(query)
        found = np.arange(low, high, dtype=np.int32)
        if len(query) <= KEY_BYTES:
            return found
        size, buffer = len(query), self.names.buffer
        return found[
            [
                buffer[position : position + size].tobytes() == query
                for position in self.entries.positions[found]
            ]
        ]

    def find_exact(self, query: bytes) -> list[int]:
        """Return the tags that have a query as their name, then those that have it as an alias."""
        found = self.find_entries(query)
        positions = self.entries.positions[found]
        buffer = self.names.buffer
        is_entire = (buffer[positions - 1] == 0) & (buffer[positions + len(query)] == 0)
        names = self.entries.names[found[is_entire]]
        return list(dict.fromkeys(self.names.tags[np.sort(names)].tolist()))

    def find_best_names(self, names: Ints, limit: int) -> list[int]:
        """Return the tags of the names of the best rank, each once."""
        return self.find_best(self._first_entries[names], limit)

    def find_best(self, entries: Ints, limit: int) -> list[int]:
        """Return the tags of the entries of the best rank, each once."""
        ranks, size = self.entries.ranks[entries], limit * 4
        while True:
            best = np.argpartition(ranks, size)[:size] if size < len(ranks) else np.arange(len(ranks))
            ordered = entries[best[np.argsort(ranks[best])]]
            tags = list(dict.fromkeys(self.find_tags(ordered).tolist()))
            if len(tags) >= limit or size >= len(ranks):
                return tags[:limit]
            size *= 8

    def find_names(self, queries: Sequence[bytes]) -> Ints:
        """Return the entries at the beginning of a name that begin with any of some short queries."""
        keys = self.entries.keys
        low = np.searchsorted(keys, np.array(queries, keys.dtype))
        after = [query + b"\xff" * (KEY_BYTES - len(query)) for query in queries]
        sizes = np.searchsorted(keys, np.array(after, keys.dtype), side="right") - low
        offsets = np.repeat(low - np.cumsum(sizes) + sizes, sizes)
        found = np.unique(offsets + np.arange(len(offsets))).astype(np.int32)
        return found[self.names.starts[self.entries.names[found]] == self.entries.positions[found]]

    def find_tags(self, entries: Ints) -> Ints:
        """Return the tag of each entry."""
        return self.names.tags[self.entries.names[entries]]


def _collect_names(tags: Sequence[Tag]) -> Names:
    names = [fold(tag.name).encode() for tag in tags]
    owners = [*range(len(tags))]
    for row, tag in enumerate(tags):
        folded = {fold(alias).encode() for alias in tag.aliases}
        kept = sorted(folded - {names[row], b""})
        names += kept
        owners += [row] * len(kept)
    joined = b"\0" + b"\0".join(name.replace(b"\0", b"") for name in names) + bytes(KEY_BYTES + 1)
    buffer = np.frombuffer(joined, np.uint8)
    starts = np.flatnonzero(buffer[:-KEY_BYTES] == 0).astype(np.int32) + 1
    return Names(buffer, starts, np.array(owners, np.int32), len(tags))


def _sort_entries(names: Names, counts: NDArray[np.float64]) -> Entries:
    positions = _find_words(names)
    owners = (np.searchsorted(names.starts, positions, side="right") - 1).astype(np.int32)
    windows = np.lib.stride_tricks.sliding_window_view(names.buffer, KEY_BYTES)
    keys = _cut_at_zero(windows[positions]).view(f"S{KEY_BYTES}").ravel()
    order = np.argsort(keys, kind="stable")
    keys, positions, owners = keys[order], positions[order], owners[order]
    weights = counts[names.tags[owners]]
    weights *= np.where(names.starts[owners] == positions, 1.0, INNER_SHARE)
    weights *= np.where(owners < names.tag_count, 1.0, ALIAS_SHARE)
    ranks = np.empty(len(positions), np.int32)
    ranks[np.lexsort((names.tags[owners], -weights))] = np.arange(len(positions), dtype=np.int32)
    return Entries(keys, positions, owners, ranks)


def _find_words(names: Names) -> Ints:
    """Return the positions where a name or a word in it begins; in scripts without spaces each character is a word."""
    buffer = names.buffer
    is_letter = np.zeros(256, bool)
    is_letter[[*b"abcdefghijklmnopqrstuvwxyz0123456789'", *range(0x80, 0x100)]] = True
    letters = is_letter[buffer]
    is_start = np.zeros(len(buffer), bool)
    is_start[1:] = (letters[1:] & ~letters[:-1]) | (buffer[1:] >= 0xE3) & (buffer[1:] <= 0xED)
    is_start[names.starts[:-1]] = buffer[names.starts[:-1]] != 0
    return np.flatnonzero(is_start).astype(np.int32)


def _cut_at_zero(windows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return windows with zeros from their first zero on, so that none reaches into the next name."""
    return np.where(np.logical_and.accumulate(windows != 0, axis=1), windows, np.uint8(0))
