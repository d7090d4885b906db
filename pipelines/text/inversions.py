"""Textual inversions: words of a prompt that stand for trained vectors, which replace token embeddings.

Each vector has an id above CLIP's vocabulary, so a chunk's ids stay whole numbers, count as tokens and are a key for
caches. Only headers are read here. Sources: Gal et al. 2022; A1111's and ComfyUI's ways to name them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import WeightsError
from pipelines.weights.header import FLOATS, TensorRef, read_header

BUNDLE = "bundle_emb."
"""What stands before the name and key of a textual inversion in a LoRA's file, as in ComfyUI's and A1111's."""
ENCODER_KEYS = ("clip_l", "clip_g")
"""Keys of the vectors for SDXL's first and second text encoder."""
MOST_VECTORS = 75
"""Number of vectors that fit into a chunk."""


@dataclass(frozen=True, slots=True)
class InversionFile:
    """The vectors in a file, for each text encoder; None for one that it has none for."""

    path: Path
    vectors: tuple[TensorRef | None, ...]

    @property
    def count(self) -> int:
        """Number of tokens that the word counts as."""
        return max(_count_rows(ref) for ref in self.vectors if ref is not None)

    def check_widths(self, widths: Sequence[int]) -> None:
        """Raise WeightsError unless the vectors fit text encoders of these widths."""
        pairs = zip(self.vectors, (*widths, 0), strict=False)
        wrong = [ref for ref, width in pairs if ref is not None and ref.shape[-1] != width]
        if wrong:
            expected = " and ".join(map(str, widths))
            reason = (
                f"its vectors have {wrong[0].shape[-1]} values, this model's text encoders take {expected}"
            )
            raise WeightsError(self.path, f"{reason}; it was trained for another family")


def bundled_word(key: str) -> str | None:
    """Return the name of the textual inversion that a tensor of a LoRA's file belongs to; None for others."""
    return key.removeprefix(BUNDLE).split(".")[0] if key.startswith(BUNDLE) else None


def read_inversion(path: Path, bundled: str = "") -> InversionFile:
    """Read a file's header; from a LoRA's file, the textual inversion of the name `bundled`.

    Raises:
        WeightsError: it holds no textual inversion, or one of too many vectors.
    """
    tensors = read_header(path).tensors
    if bundled:
        prefix = f"{BUNDLE}{bundled}."
        own = (key for key in tensors if key.startswith(prefix))
        tensors = {key.removeprefix(prefix): tensors[key] for key in own}
    if tensors.keys() & set(ENCODER_KEYS):
        refs = tuple(tensors.get(key) for key in ENCODER_KEYS)
    elif len(tensors) == 1:
        refs = tuple(tensors.values())  # `emb_params`, or the word itself in diffusers' files
    else:
        refs = ()
    shapes = [ref.shape for ref in refs if ref is not None]
    is_inversion = bool(shapes) and all(1 <= len(shape) <= 2 and shape[-1] for shape in shapes)
    if not is_inversion or any(ref.dtype not in FLOATS for ref in refs if ref is not None):
        raise WeightsError(
            path, "not a textual inversion: it needs clip_l and clip_g, or one tensor of vectors"
        )
    found = InversionFile(path, refs)
    if len({_count_rows(ref) for ref in refs if ref is not None}) > 1:
        raise WeightsError(path, "it has a different number of vectors for each text encoder; it is damaged")
    if not 1 <= found.count <= MOST_VECTORS:
        raise WeightsError(path, f"it has {found.count} vectors; 1 to {MOST_VECTORS} are supported")
    return found


def _count_rows(ref: TensorRef) -> int:
    return ref.shape[0] if len(ref.shape) == 2 else 1
