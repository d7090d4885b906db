"""Recognizes files that are not models by their keys, and says which setting such a file belongs to."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from pipelines.weights.header import TensorRef

Tensors = Collection[TensorRef]
INVERSION_WIDTHS = {768, 1024, 1280}
"""Widths of the text encoders' token embeddings."""


@dataclass(frozen=True, slots=True)
class OtherKind:
    """A kind of file that is not a model: what it is and where it belongs, and how it is recognized."""

    reason: str
    matches: Callable[[Tensors], bool]


def _has_key(pattern: str) -> Callable[[Tensors], bool]:
    """Return a test for files with a key that matches a regular expression."""
    expression = re.compile(pattern)
    return lambda tensors: any(expression.search(tensor.key) for tensor in tensors)


def _is_inversion(tensors: Tensors) -> bool:
    """Whether a file has only a few vectors, as wide as a text encoder's embeddings."""
    shapes = [tensor.shape for tensor in tensors]
    return 0 < len(shapes) <= 4 and all(
        1 <= len(shape) <= 2 and shape[-1] in INVERSION_WIDTHS for shape in shapes
    )


OTHER_KINDS = (
    OtherKind(
        "an image encoder alone, not a model; name it as the `image_encoder` of a model's `vibe`",
        _has_key(r"(^|\.)(vision_model\.encoder|visual\.transformer)\."),
    ),
    OtherKind(
        "a text encoder alone, not a model; name it under the `text_encoders` of one",
        _has_key(r"(^|\.)(text_model\.encoder\.layers|encoder\.layers\.\d+\.self_attn|resblocks)\."),
    ),
    OtherKind(
        "an upscaling network, not a model; set it as the `upscaler` of the catalog",
        _has_key(r"(?i)(^|\.)rdb1\.conv1\."),
    ),
    OtherKind(
        "a decoder of previews, not a model; set it as the `preview_decoder` of one",
        _has_key(r"^(taesd_)?(decoder\.)?(layers\.)?\d+\.conv\.0\.weight$"),
    ),
    OtherKind(
        "a T2I-Adapter, which is not supported",
        _has_key(r"^(adapter\.)?body\.\d+\.(resnets\.\d+\.)?block[12]\."),
    ),
    OtherKind("a hypernetwork, which is not supported", _has_key(r"^\d+\.\d+\.linear\.\d+\.weight$")),
    OtherKind("a textual inversion, not a model; it replaces words of a prompt", _is_inversion),
)


def describe_other_kind(tensors: Tensors) -> str | None:
    """Return what a file without a UNet is, or None if it is of no known kind."""
    return next((kind.reason for kind in OTHER_KINDS if kind.matches(tensors)), None)
