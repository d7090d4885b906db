"""The sigma range of a network with EDM velocity prediction (CosXL), from its file or its scheduler's config.

ComfyUI writes and reads the tensors `edm_vpred.sigma_min` and `edm_vpred.sigma_max`; diffusers' EDM schedulers have
fields of the same names. One that is absent, or empty as markers often are, has CosXL's value.
"""

import struct
import sys
from math import isfinite, prod

from pipelines.errors import WeightsError
from pipelines.weights.checkpoint import Checkpoint
from pipelines.weights.header import TensorRef
from pipelines.weights.scheduler_config import read_sigma

COSXL_RANGE = (0.002, 120.0)
FORMATS = {"F64": "<d", "F32": "<f", "F16": "<e"}


def read_sigma_range(checkpoint: Checkpoint) -> tuple[float, float]:
    """Return the smallest and the largest sigma, or raise WeightsError if they are not numbers that rise from 0."""
    low, high = (
        _read_sigma(checkpoint, name, default)
        for name, default in zip(("sigma_min", "sigma_max"), COSXL_RANGE, strict=True)
    )
    if not (0 < low < high and isfinite(high)):
        reason = f"its EDM sigma range is {low:g} to {high:g}; it must be finite and rise from above 0"
        raise WeightsError(checkpoint.path, reason)
    return low, high


def _read_sigma(checkpoint: Checkpoint, name: str, default: float) -> float:
    tensor = checkpoint.tensors.get(f"edm_vpred.{name}")
    if tensor is not None:
        return default if prod(tensor.shape) == 0 else _read_scalar(tensor)
    value = read_sigma(checkpoint.scheduler, name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > sys.float_info.max:
        raise WeightsError(
            checkpoint.path, f"its scheduler's {name} is {str(value)[:80]!r}; it must be a number"
        )
    return float(value)


def _read_scalar(tensor: TensorRef) -> float:
    """The value of a tensor with one element, of any float dtype."""
    if prod(tensor.shape) != 1:
        reason = f"{tensor.key} has the shape {tensor.shape}; it must be a single number"
        raise WeightsError(tensor.file, reason)
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        data = file.read(tensor.end - tensor.start)
    value = _decode_float(tensor.dtype, data)
    if value is None:
        raise WeightsError(tensor.file, f"{tensor.key} is of dtype {tensor.dtype}; it must be a float")
    return value


def _decode_float(dtype: str, data: bytes) -> float | None:
    """The value of one little-endian float, None for another dtype."""
    if dtype in FORMATS:
        return float(struct.unpack(FORMATS[dtype], data)[0])
    if dtype == "BF16":  # the upper half of a float32
        return float(struct.unpack("<f", b"\0\0" + data)[0])
    if dtype == "F8_E5M2":  # the upper half of a float16
        return float(struct.unpack("<e", b"\0" + data)[0])
    return _decode_e4m3(data[0]) if dtype == "F8_E4M3" else None


def _decode_e4m3(byte: int) -> float:
    """The value of an 8-bit float without infinities: sign, 4 bits of exponent (bias 7), 3 of mantissa."""
    sign, exponent, mantissa = (-1.0 if byte & 0x80 else 1.0), byte >> 3 & 15, byte & 7
    if (exponent, mantissa) == (15, 7):
        return float("nan")
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))
