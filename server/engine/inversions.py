"""The folder of textual inversions: which files are in it, and what they are."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import WeightsError, abbreviate
from pipelines.text.inversions import InversionFile, read_inversion
from server.engine.named_files import build_cards, list_names, open_named


@dataclass(frozen=True, slots=True)
class StoredInversion:
    """A textual inversion in the folder, under the name that prompts have for it."""

    name: str
    file: InversionFile
    fingerprint: str


def open_inversion(folder: Path, name: str) -> StoredInversion:
    """Return a textual inversion of the folder; raise WeightsError if it cannot be used."""
    return StoredInversion(name, *open_named(folder, name, read_inversion))


def build_inversion_cards(folder: Path | None) -> list[dict[str, object]]:
    """Return the entry of `/models` for every textual inversion in the folder."""
    return build_cards(folder, _describe)


def _describe(folder: Path, name: str) -> dict[str, object]:
    stored = open_inversion(folder, name)
    return {"name": name, "hash": stored.fingerprint, "tokens": stored.file.count}


def describe_inversions(folder: Path) -> Iterator[str]:
    """Yield a line about each textual inversion in the folder."""
    for name in list_names(folder):
        try:
            what = f"{open_inversion(folder, name).file.count} tokens"
        except WeightsError as error:
            what = f"cannot be used: {error.reason}"
        yield f"inversion {abbreviate(name)}: {what}"
