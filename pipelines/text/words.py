"""Finding names in a text as words of their own, in time that grows with the text and not with the number of names.

Case does not matter, nor whether a letter with an accent is one character or two, as macOS writes file names.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar
from unicodedata import normalize

MARKER = "embedding:"
"""ComfyUI writes this before the name of a textual inversion, and the file's suffix after it if it likes."""
SUFFIX = re.compile(r"\.(?:safetensors|pt|bin)(?![\w-])")
ATOM = re.compile(r"[\w-]+|.", re.DOTALL)
WORD_CHARACTER = re.compile(r"[\w-]")
Value = TypeVar("Value")


def fold_name(name: str) -> str:
    """Return a name as it is compared; equal letters have equal positions in the name and in its NFC form."""
    name = normalize("NFC", name)
    return name.lower() if name.isascii() else "".join(map(_lower, name))


def _lower(letter: str) -> str:
    lower = letter.lower()
    return lower if len(lower) == 1 else letter


class WordFinder(Generic[Value]):
    """Finds names in texts; of two that begin alike, the longer one.

    Args:
        values: what each name stands for. Names that differ in case only are one name.
    """

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = {fold_name(name): value for name, value in values.items() if name}
        lengths: dict[str, set[int]] = {}
        for name in self._values:
            lengths.setdefault(_first_atom(name, 0), set()).add(len(name))
        self._lengths = {atom: sorted(found, reverse=True) for atom, found in lengths.items()}

    def split(self, text: str) -> Iterator[str | Value]:
        """Yield a text in pieces: text, and the value of each name in it."""
        if not self._values:
            yield text
            return
        text, position = normalize("NFC", text), 0
        folded = fold_name(text)
        for atom in ATOM.finditer(folded):
            start = atom.start()
            found = None if start < position else self._find(folded, start)
            if found is not None:
                yield text[position:start]
                yield self._values[found[0]]
                position = found[1]
        yield text[position:]

    def _find(self, text: str, start: int) -> tuple[str, int] | None:
        """Return the name that begins at the start of an atom, with or without the marker, and where it ends."""
        if start and WORD_CHARACTER.match(text, start - 1):
            return None
        is_marked = text.startswith(MARKER, start)
        found = self._match(text, start + len(MARKER)) if is_marked else None
        if found is not None:
            suffix = SUFFIX.match(text, found[1])
            return found if suffix is None else (found[0], suffix.end())
        return self._match(text, start)

    def _match(self, text: str, start: int) -> tuple[str, int] | None:
        for length in self._lengths.get(_first_atom(text, start), ()):
            name, end = text[start : start + length], start + length
            if name in self._values and not WORD_CHARACTER.match(text, end):
                return name, end
        return None


def _first_atom(text: str, start: int) -> str:
    atom = ATOM.match(text, start)
    return "" if atom is None else atom[0]
