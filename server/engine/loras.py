"""The folder of LoRAs: which files are in it, what they are, and finding one by its name."""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from pipelines.adapters.lora_file import LoraFile, read_lora
from pipelines.errors import WeightsError, abbreviate
from pipelines.text.words import fold_name
from pipelines.weights.families import FAMILIES
from server.engine.named_files import SUFFIX, build_cards, list_names, open_named

MOST_HINTS = 3


class UnknownLora(ValueError):
    """A name that no file in the folder has; the message says what to do."""


@dataclass(frozen=True, slots=True)
class StoredLora:
    """A LoRA in the folder."""

    name: str
    file: LoraFile
    fingerprint: str

    def card(self) -> dict[str, object]:
        """Entry of `/models`."""
        family = self.file.family
        return {
            "name": self.name,
            "hash": self.fingerprint,
            "kinds": list(self.file.kinds),
            "ranks": list(self.file.ranks),
            "networks": list(self.file.folders),
            "family": family,
            "inversions": list(self.file.words),
            "title": self.file.metadata.get("modelspec.title"),
        }


def find_lora(folder: Path | None, name: str) -> StoredLora:
    """Return the LoRA with a name, with or without its suffix.

    The only one that differs in case, or in how a letter with an accent is written, is found too.

    Raises:
        UnknownLora: there is none, or more than one.
        WeightsError: the file is no LoRA.
    """
    if folder is None:
        raise UnknownLora(
            "no LoRAs are offered; the operator names their folder in `lora_folder` of the catalog"
        )
    if not name or any(letter in "/\\\0" for letter in name) or name.strip(".") == "" or ".." in name:
        raise UnknownLora("must be the name of a file in the folder of LoRAs, without / and ..")
    wanted, names = name.removesuffix(SUFFIX), list_names(folder)
    folded = [other for other in names if fold_name(other) == fold_name(wanted)]
    if wanted in names:
        return open_lora(folder, wanted)
    if len(folded) == 1:
        return open_lora(folder, folded[0])
    near = folded or get_close_matches(wanted[:100], names, n=MOST_HINTS)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "; GET /models lists all"
    raise UnknownLora(f"is not one of the {len(names)} LoRAs{hint}")


def open_lora(folder: Path, name: str) -> StoredLora:
    """Return a LoRA of the folder; raise WeightsError if it cannot be used."""
    return StoredLora(name, *open_named(folder, name, read_lora))


def build_lora_cards(folder: Path | None) -> list[dict[str, object]]:
    """Return the card of every LoRA in the folder."""
    return build_cards(folder, _describe)


def _describe(folder: Path, name: str) -> dict[str, object]:
    return open_lora(folder, name).card()


def describe_loras(folder: Path) -> Iterator[str]:
    """Yield a line about each LoRA in the folder."""
    for name in list_names(folder):
        try:
            lora = open_lora(folder, name).file
        except WeightsError as error:
            yield f"lora {abbreviate(name)}: cannot be used: {error.reason}"
            continue
        family = "a family that its keys do not show" if lora.family is None else FAMILIES[lora.family].title
        ranks = "" if not lora.ranks else f", rank {', '.join(map(str, lora.ranks[:4]))}"
        kinds, layers = ", ".join(lora.kinds), len(lora.layers)
        words = "" if not lora.words else f"; textual inversions: {', '.join(map(abbreviate, lora.words))}"
        where = f"{layers} layers of {', '.join(lora.folders)}"
        yield f"lora {abbreviate(name)}: {kinds}{ranks}, for {family}, {where}{words}"
