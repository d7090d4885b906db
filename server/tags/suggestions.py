"""Suggestions for a prompt: tags that begin like the one at its end, and then those that resemble it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np

from server.tags.index import TagIndex, fold
from server.tags.query import find_queries
from server.tags.table import Tag
from server.tags.typos import TypoIndex

LIMIT = 10
CERTAIN_COUNT = 10_000
"""Number of images from which a tag has the confidence 1; NAI reports no larger counts."""
LONGEST_QUERY = 100
JAPANESE = re.compile("[\u3005-\u3007\u3041-\u30ff\u3400-\u9fff]")


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A suggested tag, its number of images, and its Japanese alias, if it has one.

    `confidence` is 1 for tags of CERTAIN_COUNT images, less for rarer ones and for those that only resemble the query.
    """

    tag: str
    count: int
    confidence: float
    japanese: str | None = None


class Suggester:
    """Suggests tags of one list."""

    def __init__(self, tags: Sequence[Tag]) -> None:
        self._index = TagIndex(tags)
        self._typos = TypoIndex(self._index)
        self._is_japanese = np.array([any(map(JAPANESE.search, tag.aliases)) for tag in tags])

    def suggest(self, prompt: str, only_japanese: bool = False) -> list[Suggestion]:
        """Return the suggestions for a prompt, the best first; `only_japanese` keeps tags with a Japanese alias."""
        queries = [query for text in find_queries(prompt) if (query := fold(text)[:LONGEST_QUERY])]
        if not queries:
            return []
        beginning = ((query, self._find_beginning(query.encode(), only_japanese)) for query in queries)
        nothing = queries[-1], list[int]()
        query, tags = next((found for found in beginning if found[1]), nothing)
        typos = dict.fromkeys(tags, 0)
        if len(tags) < LIMIT:
            similar = self._typos.find_similar(query.encode(), LIMIT * (10 if only_japanese else 1))
            typos = {tag: count for tag, count in similar if self._is_wanted(tag, only_japanese)} | typos
            tags += [tag for tag in typos if tag not in tags]
        return [self._describe(tag, query, typos[tag]) for tag in tags[:LIMIT]]

    def _find_beginning(self, query: bytes, only_japanese: bool) -> list[int]:
        """Return the tags with exactly this name or alias, and then the best ones that begin with it."""
        entries = self._index.find_entries(query)
        if only_japanese:
            entries = entries[self._is_japanese[self._index.find_tags(entries)]]
        exact = [tag for tag in self._index.find_exact(query) if self._is_wanted(tag, only_japanese)]
        return list(dict.fromkeys([*exact, *self._index.find_best(entries, LIMIT)]))

    def _is_wanted(self, tag: int, only_japanese: bool) -> bool:
        return not only_japanese or bool(self._is_japanese[tag])

    def _describe(self, tag: int, query: str, typos: int) -> Suggestion:
        found = self._index.tags[tag]
        known = min(1.0, log(found.count + 1) / log(CERTAIN_COUNT + 1))
        japanese = [alias for alias in found.aliases if JAPANESE.search(alias)]
        matching = next((alias for alias in japanese if query in fold(alias)), None)
        shown = matching or (japanese[0] if japanese else None)
        confidence = round(known * (1 - typos / len(query)), 2)
        return Suggestion(found.name, min(found.count, CERTAIN_COUNT), confidence, shown)
