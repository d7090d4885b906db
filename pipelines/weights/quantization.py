"""Quantized files: the kinds that are refused, and the scales of 8-bit floats, which are applied.

"Scaled" files (ComfyUI's term) hold a matrix in 8-bit floats and next to it the factor that restores its size. The
others hold integers, which no network here computes with.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipelines.errors import WeightsError, abbreviate
from pipelines.weights.header import FLOATS, TensorRef

QUANTIZED = (
    (re.compile(r"\.quant_state\.bitsandbytes__(?:nf4|fp4)$"), "bitsandbytes (nf4 or fp4)"),
    (re.compile(r"\.(absmax|quant_map|nested_absmax|nested_quant_map|SCB)$"), "bitsandbytes"),
    (re.compile(r"\.(wscales|smooth_factor|smooth_factor_orig|wtscale|wcscales)$"), "SVDQuant"),
    (re.compile(r"\.(qweight|qzeros|g_idx)$"), "GPTQ or AWQ"),
    (re.compile(r"\.weight\._(data|scale|shift)$"), "Quanto"),
    (re.compile(r"\.W_q$"), "HQQ"),
    (re.compile(r"\.weight_scale_(2|inv)$"), "blocks (nvfp4 or fp8)"),
)
"""Keys that only quantized files have, and by what they are quantized."""
SCALED_MARKER = re.compile(r"(^|\.)(scaled_fp8|comfy_quant)$|\.(scale_weight|weight_scale)$")
SCALED_METADATA = "_quantization_metadata"
SCALE_DTYPES = ("F64", "F32", "F16", "BF16")
ADVICE = f"not supported; use a file in {', '.join(FLOATS[1:4])}, or in 8-bit floats"


def refuse_quantized(path: Path, keys: Iterable[str]) -> None:
    """Raise WeightsError if the keys are those of a quantized file that cannot be read, with its kind."""
    keys = tuple(keys)
    for pattern, kind in QUANTIZED:
        key = next((key for key in keys if pattern.search(key)), None)
        if key is not None:
            raise WeightsError(path, f"quantized by {kind} ({abbreviate(key)}), which is {ADVICE}")


def check_dtype(path: Path, key: str, tensor: TensorRef) -> None:
    """Raise WeightsError if a weight does not consist of floats."""
    if tensor.dtype not in FLOATS:
        what = tensor.dtype if tensor.dtype.startswith("F") else f"{tensor.dtype}, as quantized files do"
        raise WeightsError(path, f"{abbreviate(key)} holds {what}, which is {ADVICE}")


def is_scaled(keys: Iterable[str], metadata: Mapping[str, str]) -> bool:
    """Return whether a file says of its 8-bit floats that they have scales."""
    return SCALED_METADATA in metadata or any(SCALED_MARKER.search(key) for key in keys)


def find_scale(tensors: Mapping[str, TensorRef], key: str) -> str | None:
    """Return the key of the scale of the weight under `key`, or None if there is none."""
    keys = (f"{key}_scale", f"{key.removesuffix('weight')}scale_weight")
    return next((scale for scale in keys if scale in tensors), None)


def check_scale(path: Path, tensors: Mapping[str, TensorRef], key: str, scale: str | None) -> None:
    """Raise WeightsError unless a scale is one number, or one for each row of the weight.

    Args:
        scale: its key, or None for an 8-bit weight whose scale is missing.
    """
    weight = tensors[key]
    if scale is None:
        if weight.dtype.startswith("F8") and len(weight.shape) > 1:
            reason = f"{abbreviate(key)} has no scale, though the file is marked as scaled; its size is lost"
            raise WeightsError(path, reason)
        return
    ref = tensors[scale]
    rows = weight.shape[:1]
    fits = set(ref.shape) <= {1} or (ref.shape[:1] == rows and set(ref.shape[1:]) <= {1})
    if ref.dtype not in SCALE_DTYPES or not fits:
        allowed = f"one float or {rows[0] if rows else 1}, one for each row, are supported"
        reason = f"the scale {abbreviate(scale)} is {ref.dtype} of the shape {ref.shape}; {allowed}"
        raise WeightsError(path, reason)
