"""Textual inversions that a request's prompts name."""

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

from pipelines.errors import WeightsError
from pipelines.job import Inversion, Prompts
from pipelines.text.prompt import list_prompt_pairs
from pipelines.text.words import MARKER, WordFinder, fold_name
from server.engine.inversions import open_inversion
from server.engine.model import ServedModel
from server.engine.named_files import list_names
from server.errors import Rejected, shorten

MARKED = re.compile(rf"(?<![\w-]){MARKER}([\w.-]*)", re.IGNORECASE)
MOST_INVERSIONS = 32
MOST_HINTS = 3


def choose_inversions(prompts: Prompts, model: ServedModel) -> tuple[tuple[Inversion, ...], tuple[str, ...]]:
    """Return the textual inversions that any of the prompts names, and warnings.

    Raises:
        Rejected: there is a folder of them, and a name after `embedding:` is not in it, or a file cannot be used.
    """
    folder = model.inversion_folder
    if folder is None:
        return (), ()
    try:
        names = list_names(folder)
    except WeightsError as error:
        return (), (f"input: names of textual inversions are read as text: {error.reason}",)
    words = _find_words(names)
    chosen: dict[str, Inversion] = {}
    for field, text in _list_texts(prompts):
        for piece in words.split(text):
            if isinstance(piece, str):
                _refuse_unknown(field, piece, names)
            elif piece[0] not in chosen:
                chosen[piece[0]] = _open(folder, piece, model, field)
                if len(chosen) > MOST_INVERSIONS:
                    raise Rejected(
                        field, f"more than {MOST_INVERSIONS} textual inversions, which is the most"
                    )
    return tuple(chosen[name] for name in sorted(chosen)), ()


def _find_words(names: Sequence[str]) -> WordFinder[tuple[str, ...]]:
    """Return what finds the names in texts; names that differ in case only are found together."""
    groups: dict[str, tuple[str, ...]] = {}
    for name in names:
        groups[fold_name(name)] = (*groups.get(fold_name(name), ()), name)
    return WordFinder(groups)


def _list_texts(prompts: Prompts) -> Iterator[tuple[str, str]]:
    """Yield the texts that are encoded, and the fields that they come from."""
    fields = "input", "negative_prompt"
    for pair in list_prompt_pairs(prompts):
        for field, segments in zip(fields, pair, strict=True):
            yield from ((field, text) for segment in segments for text, _ in segment.runs)
        fields = "v4_prompt", "v4_negative_prompt"


def _refuse_unknown(field: str, text: str, names: Sequence[str]) -> None:
    match = MARKED.search(text)
    if match is None:
        return
    if not match[1]:
        raise Rejected(field, f"`{MARKER}` without a name; GET /models lists the textual inversions")
    near = get_close_matches(match[1][:100], names, n=MOST_HINTS)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "GET /models lists all"
    raise Rejected(field, f"{shorten(match[1])} is not one of the {len(names)} textual inversions; {hint}")


def _open(folder: Path, names: tuple[str, ...], model: ServedModel, field: str) -> Inversion:
    name, *others = names
    if others:
        files = " and ".join(map(repr, names))
        raise Rejected(field, f"the textual inversions {files} are one word; rename a file, or leave it out")
    try:
        stored = open_inversion(folder, name)
        stored.file.check_widths(model.text_widths)
    except WeightsError as error:
        reason = f"the textual inversion {name!r} cannot be used: {error.reason}"
        raise Rejected(field, reason) from None
    return Inversion(name, stored.file.path, stored.fingerprint, stored.file.count)
