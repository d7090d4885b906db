"""The folder of textual inversions: which files are in it, and what they are."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipelines.errors import WeightsError, abbreviate
from pipelines.text.inversions import InversionFile, read_inversion
from pipelines.weights.checkpoint import fingerprint
from server.engine.loras import list_names

SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class StoredInversion:
    """A textual inversion in the folder, under the name that prompts have for it."""

    name: str
    file: InversionFile
    fingerprint: str


def open_inversion(folder: Path, name: str) -> StoredInversion:
    """Return a textual inversion of the folder; raise WeightsError if it cannot be used."""
    path = folder / f"{name}{SUFFIX}"
    try:
        status = path.stat()
    except OSError as error:
        raise WeightsError(path, f"cannot be read: {error.strerror}") from error
    return _open(path, name, status.st_size, status.st_mtime_ns)


@lru_cache(512)
def _open(path: Path, name: str, _size: int, _modified: int) -> StoredInversion:
    """Read a file's header and fingerprint, once for each state of the file."""
    return StoredInversion(name, read_inversion(path), fingerprint(path))


def build_inversion_cards(folder: Path | None) -> list[dict[str, object]]:
    """Return the entry of `/models` for every textual inversion in the folder."""
    return [] if folder is None else [_build_card(folder, name) for name in list_names(folder)]


def _build_card(folder: Path, name: str) -> dict[str, object]:
    try:
        stored = open_inversion(folder, name)
    except WeightsError as error:
        return {"name": name, "problem": error.reason}
    return {"name": name, "hash": stored.fingerprint, "tokens": stored.file.count}


def describe_inversions(folder: Path) -> Iterator[str]:
    """Yield a line about each textual inversion in the folder."""
    for card in build_inversion_cards(folder):
        what = f"cannot be used: {card['problem']}" if "problem" in card else f"{card['tokens']} tokens"
        yield f"inversion {abbreviate(str(card['name']))}: {what}"
