"""Textual inversions that a request's prompts name."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from pipelines.errors import WeightsError
from pipelines.job import Inversion, Lora, Prompts
from pipelines.text.inversions import read_inversion
from pipelines.text.prompt import list_prompt_pairs
from pipelines.text.words import MARKER, WordFinder, fold_name
from server.engine.inversions import open_inversion
from server.engine.loras import open_lora
from server.engine.model import ServedModel
from server.engine.named_files import list_names
from server.errors import Rejected, shorten

MARKED = re.compile(rf"(?<![\w-]){MARKER}([\w.-]*)", re.IGNORECASE)
MOST_INVERSIONS = 32
MOST_HINTS = 3


@dataclass(frozen=True, slots=True)
class Word:
    """The names of a word, more than one if those of files differ in case only; and the LoRA in whose file it is."""

    names: tuple[str, ...]
    lora: Lora | None = None


def choose_inversions(
    prompts: Prompts, model: ServedModel, loras: Sequence[Lora] = ()
) -> tuple[tuple[Inversion, ...], tuple[str, ...]]:
    """Return the textual inversions that any of the prompts names, and warnings.

    They are in the folder, or in the files of these LoRAs.

    Raises:
        Rejected: there is a folder of them, and a name after `embedding:` is not in it, or a file cannot be used.
    """
    folder, names, warnings = _list_folder(model)
    words = _list_words(names, model, loras)
    if not words and folder is None:
        return (), warnings
    known = [word.names[0] for word in words.values()]
    finder, chosen = WordFinder(words), dict[str, Inversion]()
    for field, text in _list_texts(prompts):
        for piece in finder.split(text):
            if isinstance(piece, Word):
                if piece.names[0] not in chosen:
                    chosen[piece.names[0]] = _open(piece, model, field)
            elif folder is not None:
                _refuse_unknown(field, piece, known)
        if len(chosen) > MOST_INVERSIONS:
            raise Rejected(field, f"{len(chosen)} textual inversions; at most {MOST_INVERSIONS}")
    return tuple(chosen[name] for name in sorted(chosen)), warnings


def _list_folder(model: ServedModel) -> tuple[Path | None, list[str], tuple[str, ...]]:
    """Return the folder of textual inversions if it can be read, their names, and warnings."""
    folder = model.inversion_folder
    try:
        return folder, [] if folder is None else list_names(folder), ()
    except WeightsError as error:
        return None, [], (f"input: names of textual inversions are read as text: {error.reason}",)


def _list_words(names: Sequence[str], model: ServedModel, loras: Sequence[Lora]) -> dict[str, Word]:
    """Return all textual inversions by their folded names.

    A LoRA's word comes before a file of the same name, because it was trained with the LoRA.
    """
    files: dict[str, tuple[str, ...]] = {}
    for name in names:
        files[fold_name(name)] = (*files.get(fold_name(name), ()), name)
    words: dict[str, Word] = {}
    for lora in loras:
        assert model.lora_folder is not None
        for name in open_lora(model.lora_folder, lora.name).file.words:
            words.setdefault(fold_name(name), Word((name,), lora))
    return {key: Word(same) for key, same in files.items()} | words


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


def _open(word: Word, model: ServedModel, field: str) -> Inversion:
    name, lora = word.names[0], word.lora
    if len(word.names) > 1:
        files = " and ".join(map(repr, word.names))
        raise Rejected(field, f"the textual inversions {files} are one word; rename a file, or leave it out")
    try:
        if lora is None:
            assert model.inversion_folder is not None
            stored = open_inversion(model.inversion_folder, name)
            file, mark = stored.file, stored.fingerprint
        else:
            file, mark = read_inversion(lora.path, name), lora.fingerprint
        file.check_widths(model.text_widths)
    except WeightsError as error:
        raise Rejected(field, f"the textual inversion {name!r} cannot be used: {error.reason}") from None
    return Inversion(name, file.path, mark, file.count, is_bundled=lora is not None)
