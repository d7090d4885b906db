"""The vectors of textual inversions in memory, by the ids that stand for them in chunks."""

from collections.abc import Mapping, Sequence
from itertools import count
from typing import BinaryIO

import torch
from torch import Tensor

from pipelines.errors import UnusableFile, WeightsError, abbreviate
from pipelines.job import Inversion
from pipelines.text.inversions import InversionFile, read_inversion
from pipelines.text.tokens import EOS, InversionIds
from pipelines.text.words import WordFinder
from pipelines.weights.checkpoint import fingerprint
from pipelines.weights.reader import read_float

LARGEST_VALUE = 65504.0
"""float16 holds no larger ones; those of CLIP's own tokens are below 1."""


class InversionVectors:
    """Gives each vector of each file an id of its own, so that files of one name are never mixed up.

    Args:
        widths: of the model's text encoders.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        self._widths = tuple(widths)
        self._numbers = count(EOS + 1)
        self._ids: dict[tuple[str, str], tuple[int, ...]] = {}
        self._vectors: dict[int, tuple[Tensor, ...]] = {}

    def name_ids(self, inversions: Sequence[Inversion]) -> InversionIds:
        """Return the ids for the word of each inversion; its file is read the first time.

        Raises:
            UnusableFile: a file has changed, does not fit the text encoders, or has values that are not finite.
        """
        return WordFinder({inversion.name: self._find_ids(inversion) for inversion in inversions})

    def find_vectors(self, encoder: int, ids: Sequence[int]) -> Mapping[int, Tensor]:
        """Return the vectors that replace a text encoder's token embeddings, by position."""
        return {position: self._vectors[id_][encoder] for position, id_ in enumerate(ids) if id_ > EOS}

    def _find_ids(self, inversion: Inversion) -> tuple[int, ...]:
        bundled = inversion.name if inversion.is_bundled else ""
        key = inversion.fingerprint, bundled
        if key not in self._ids:
            try:
                vectors = self._read_vectors(inversion, bundled)
            except WeightsError as error:
                raise UnusableFile("textual inversion", repr(inversion.name), error.reason) from error
            ids = tuple(next(self._numbers) for _ in vectors[0])
            self._vectors |= {id_: tuple(rows[row] for rows in vectors) for row, id_ in enumerate(ids)}
            self._ids[key] = ids
        return self._ids[key]

    def _read_vectors(self, inversion: Inversion, bundled: str) -> list[Tensor]:
        """Return the vectors (count, width) for each text encoder."""
        if fingerprint(inversion.path) != inversion.fingerprint:
            raise WeightsError(inversion.path, "it has changed since the request was read; send it again")
        file = read_inversion(inversion.path, bundled)
        file.check_widths(self._widths)
        try:
            with inversion.path.open("rb") as stream:
                return [self._read(file, index, stream) for index in range(len(self._widths))]
        except OSError as error:
            raise WeightsError(inversion.path, f"cannot be read: {error.strerror}") from error

    def _read(self, file: InversionFile, encoder: int, stream: BinaryIO) -> Tensor:
        """Return the vectors (count, width) for a text encoder; zeros where the file has none for it."""
        ref = file.vectors[encoder] if encoder < len(file.vectors) else None
        if ref is None:
            return torch.zeros(file.count, self._widths[encoder])
        values = read_float(ref, stream).reshape(file.count, -1)
        if values.abs().max() > LARGEST_VALUE:
            reason = f"{abbreviate(ref.key)} has values above {LARGEST_VALUE:g}; the file is damaged"
            raise WeightsError(file.path, reason)
        return values
