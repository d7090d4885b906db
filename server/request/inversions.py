"""Textual inversions that a request's prompts name."""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from pipelines.errors import WeightsError
from pipelines.job import Inversion, Prompts
from pipelines.text.inversions import MARKER, find_words
from server.engine.inversions import open_inversion
from server.engine.model import ServedModel
from server.engine.named_files import list_names
from server.errors import Rejected, shorten

MARKED = re.compile(rf"(?<![\w-]){MARKER}([\w.-]*)", re.IGNORECASE)
MOST_INVERSIONS = 32
MOST_HINTS = 3


def choose_inversions(prompts: Prompts, model: ServedModel) -> tuple[Inversion, ...]:
    """Return the textual inversions that any of the prompts names.

    Raises:
        Rejected: there is a folder of them, and a name after `embedding:` is not in it, or a file cannot be used.
    """
    folder = model.inversion_folder
    if folder is None:
        return ()
    names = list_names(folder)
    chosen: dict[str, Inversion] = {}
    for field, text in _list_texts(prompts):
        found = list(find_words(text, names))
        _refuse_unknown(field, text, {match.start() for match in found}, names)
        for match in found:
            name = next(name for name in names if name.lower() == match[1].lower())
            chosen.setdefault(name, _open(folder, name, model, field))
    if len(chosen) > MOST_INVERSIONS:
        raise Rejected("input", f"{len(chosen)} textual inversions; at most {MOST_INVERSIONS}")
    return tuple(chosen[name] for name in sorted(chosen))


def _list_texts(prompts: Prompts) -> Iterator[tuple[str, str]]:
    yield "input", prompts.positive
    yield "negative_prompt", prompts.negative
    for character in prompts.characters:
        yield "v4_prompt", character.positive
        yield "v4_negative_prompt", character.negative


def _refuse_unknown(field: str, text: str, known: set[int], names: list[str]) -> None:
    for match in MARKED.finditer(text):
        if match.start() in known:
            continue
        name = shorten(match[1])
        near = get_close_matches(match[1][:100], names, n=MOST_HINTS)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "GET /models lists all"
        raise Rejected(field, f"{name} is not one of the {len(names)} textual inversions; {hint}")


def _open(folder: Path, name: str, model: ServedModel, field: str) -> Inversion:
    try:
        stored = open_inversion(folder, name)
        stored.file.check_widths(model.text_widths)
    except WeightsError as error:
        raise Rejected(field, f"the textual inversion {name!r} cannot be used: {error.reason}") from None
    return Inversion(name, stored.file.path, stored.fingerprint, stored.file.count)
