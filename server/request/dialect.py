"""Dialects: NAI's vocabulary in the words that a model was trained with.

Whole tags are replaced, and the emphasis around them stays where it is. Nothing else is touched: neither sentences nor
names of textual inversions. Translating twice equals translating once.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from pipelines.job import Prompts
from pipelines.text.inversions import find_words
from pipelines.text.markup import Tag, fold_tag, join_tags, read_tag, strip_weight
from pipelines.text.nai4 import split_lettering
from pipelines.text.prompt import split_segments, split_share
from server.config.profiles import Dialect

ARTIST = re.compile(r"(?:artist:\s*)+(.+)", re.IGNORECASE | re.DOTALL)
WEIGHTED_SYNTAXES = ("a1111", "nai+a1111")
"""Those in which `(tag:1.5)` has a weight."""
MIXED_SYNTAXES = ("nai", "nai+a1111")
"""Those in which a bar separates the parts of a mix."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A dialect for prompts of one syntax.

    Attributes:
        artist: what `artist:name` becomes.
        tags: what other tags become, by their folded names.
        kept: names of textual inversions, in lower case; a tag with one in it is not replaced.
    """

    syntax: str
    artist: str | None = None
    tags: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    kept: Collection[str] = ()

    def find(self, tag: Tag) -> tuple[str, ...] | None:
        """Return the tags that one becomes, which may be none; None if it stays as it is."""
        if any(find_words(tag.name, tuple(self.kept))):
            return None
        name = self._name_artist(tag.name)
        words = self.tags.get(fold_tag(name), (name,))
        if tag.has_weight:
            words = tuple(map(strip_weight, words))
        return None if list(map(fold_tag, words)) == [fold_tag(tag.name)] else words

    def _name_artist(self, text: str) -> str:
        found = ARTIST.fullmatch(text)
        name = " ".join(found[1].replace("_", " ").split()) if found else ""
        if self.artist is None or not name or read_tag(name, self.syntax).name != name:
            return text
        return self.artist.replace("{name}", name)


def build_vocabulary(
    dialect: Dialect, renames: Mapping[str, str], syntax: str, kept: Collection[str] = ()
) -> Vocabulary:
    """Return a dialect's vocabulary; `renames` has NAI's name for each Danbooru tag that NAI renamed."""
    tags: dict[str, tuple[str, ...]] = {}
    for danbooru, nai in renames.items() if dialect.renamed_tags else ():
        old, new = (danbooru, nai) if dialect.renamed_tags == "nai" else (nai, danbooru)
        if "|" not in new or syntax == "a1111":  # elsewhere a bar would end the tag
            tags.setdefault(fold_tag(old), (new,))
    for old, value in dialect.tags.items():
        words = tuple(word.strip() for word in value.split(",") if word.strip())
        tags[fold_tag(old)] = words if syntax in WEIGHTED_SYNTAXES else tuple(map(strip_weight, words))
    return Vocabulary(syntax, dialect.artist, tags, kept)


def translate_prompts(prompts: Prompts, dialect: Dialect, renames: Mapping[str, str]) -> Prompts:
    """Return prompts in a dialect's words; `written` are the given ones, if they differ."""
    kept = frozenset(word.name.lower() for word in prompts.inversions)
    vocabulary = build_vocabulary(dialect, renames, prompts.syntax, kept)
    characters = tuple(
        replace(
            character,
            positive=translate(character.positive, vocabulary),
            negative=translate(character.negative, vocabulary),
        )
        for character in prompts.characters
    )
    translated = replace(
        prompts,
        positive=translate(prompts.positive, vocabulary),
        negative=translate(prompts.negative, vocabulary),
        characters=characters,
    )
    return prompts if translated == prompts else replace(translated, written=prompts)


def translate(text: str, vocabulary: Vocabulary) -> str:
    """Return a prompt with its tags in the words of a vocabulary."""
    segments = split_segments(text, vocabulary.syntax)
    is_mix = len(segments) > 1 and vocabulary.syntax in MIXED_SYNTAXES
    return "|".join(_translate_segment(segment, vocabulary, is_mix) for segment in segments)


def _translate_segment(segment: str, vocabulary: Vocabulary, is_mix: bool) -> str:
    if vocabulary.syntax == "nai4":
        body, tail = split_lettering(segment)
    else:
        body, tail = split_share(segment) if is_mix else (segment, "")
    translated = _translate_tags(body, vocabulary)
    if is_mix and not tail and split_share(translated)[1]:
        tail = ":1"  # the last tag ends like a share, as `:3` does, and was not the last before
    return translated + tail


def _translate_tags(text: str, vocabulary: Vocabulary) -> str:
    """Translate the tags between commas. One that is already there in the model's words is left out."""
    tags = [read_tag(piece, vocabulary.syntax) for piece in text.split(",")]
    found = [vocabulary.find(tag) for tag in tags]
    seen = {fold_tag(tag.name) for tag, words in zip(tags, found, strict=True) if words is None}
    names: list[str | None] = []
    for tag, words in zip(tags, found, strict=True):
        if words is None:
            names.append(tag.name)
            continue
        fresh = [word for word in words if fold_tag(strip_weight(word)) not in seen]
        seen.update(fold_tag(strip_weight(word)) for word in fresh)
        names.append(", ".join(fresh) or None)
    return join_tags(zip(tags, names, strict=True))
