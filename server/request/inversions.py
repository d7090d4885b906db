"""Textual inversions that a request's prompts name."""

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from pipelines.errors import WeightsError
from pipelines.job import Inversion, Lora, Prompts
from pipelines.text.inversions import MARKER, find_words, read_inversion
from server.engine.inversions import open_inversion
from server.engine.loras import open_lora
from server.engine.model import ServedModel
from server.engine.named_files import list_names
from server.errors import Rejected, shorten

MARKED = re.compile(rf"(?<![\w-]){MARKER}([\w.-]*)", re.IGNORECASE)
MOST_INVERSIONS = 32
MOST_HINTS = 3


def choose_inversions(
    prompts: Prompts, model: ServedModel, loras: Sequence[Lora] = ()
) -> tuple[Inversion, ...]:
    """Return the textual inversions that any of the prompts names: of the folder, and in the files of these LoRAs.

    Raises:
        Rejected: there is a folder of them, and a name after `embedding:` is not in it, or a file cannot be used.
    """
    words = _list_words(model, loras)
    chosen: dict[str, Inversion] = {}
    for field, text in _list_texts(prompts):
        found = list(find_words(text, words))
        if model.inversion_folder is not None:
            names = [name for name, _ in words.values()]
            _refuse_unknown(field, text, {match.start() for match in found}, names)
        for match in found:
            name, lora = words[match[1].lower()]
            if name not in chosen:
                chosen[name] = _open(name, lora, model, field)
    if len(chosen) > MOST_INVERSIONS:
        raise Rejected("input", f"{len(chosen)} textual inversions; at most {MOST_INVERSIONS}")
    return tuple(chosen[name] for name in sorted(chosen))


def _list_words(model: ServedModel, loras: Sequence[Lora]) -> dict[str, tuple[str, Lora | None]]:
    """Return the names of all textual inversions by their lower case, each with the LoRA in whose file it is.

    A LoRA's word comes before a file of the same name, because it was trained with the LoRA.
    """
    words: dict[str, tuple[str, Lora | None]] = {}
    for lora in loras:
        assert model.lora_folder is not None
        for name in open_lora(model.lora_folder, lora.name).file.words:
            words.setdefault(name.lower(), (name, lora))
    for name in [] if model.inversion_folder is None else list_names(model.inversion_folder):
        words.setdefault(name.lower(), (name, None))
    return words


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


def _open(name: str, lora: Lora | None, model: ServedModel, field: str) -> Inversion:
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
