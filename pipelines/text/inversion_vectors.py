"""The vectors of textual inversions in memory, by the ids that stand for them in chunks."""

from collections.abc import Mapping, Sequence
from itertools import count

import torch
from torch import Tensor

from pipelines.errors import WeightsError
from pipelines.job import Inversion
from pipelines.text.inversions import InversionFile, InversionIds, read_inversion
from pipelines.text.tokens import EOS
from pipelines.weights.checkpoint import fingerprint
from pipelines.weights.reader import read_tensor


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
        """Return the ids for the word of each inversion, in lower case; its file is read the first time.

        Raises:
            WeightsError: a file has changed, does not fit the text encoders, or has values that are not finite.
        """
        return {inversion.name.lower(): self._find_ids(inversion) for inversion in inversions}

    def find_vectors(self, encoder: int, ids: Sequence[int]) -> Mapping[int, Tensor]:
        """Return the vectors that replace a text encoder's token embeddings, by position."""
        return {position: self._vectors[id_][encoder] for position, id_ in enumerate(ids) if id_ > EOS}

    def _find_ids(self, inversion: Inversion) -> tuple[int, ...]:
        bundled = inversion.name if inversion.is_bundled else ""
        key = inversion.fingerprint, bundled
        if key not in self._ids:
            if fingerprint(inversion.path) != inversion.fingerprint:
                raise WeightsError(inversion.path, "it has changed since the request was read; send it again")
            file = read_inversion(inversion.path, bundled)
            file.check_widths(self._widths)
            ids = tuple(next(self._numbers) for _ in range(file.count))
            vectors = [self._read(file, index) for index in range(len(self._widths))]
            self._vectors |= {id_: tuple(rows[row] for rows in vectors) for row, id_ in enumerate(ids)}
            self._ids[key] = ids
        return self._ids[key]

    def _read(self, file: InversionFile, encoder: int) -> Tensor:
        """Return the vectors (count, width) for a text encoder; zeros where the file has none for it."""
        ref = file.vectors[encoder] if encoder < len(file.vectors) else None
        if ref is None:
            return torch.zeros(file.count, self._widths[encoder])
        values = read_tensor(ref).float().reshape(file.count, -1)
        if not values.isfinite().all():
            raise WeightsError(file.path, "its values are not all finite; it is damaged")
        return values
