"""Linear layers that multiply 8-bit matrices, which is lossy: each row of the weight and of the input is rounded.

A row is divided by a scale that makes its largest value the largest of the format, so images of a pass do not depend on
each other. Sums are exact in 32 bits for int8, and have 32-bit floats for float8 (e4m3). torch has these products for
tensor cores and for the CPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

QuantizedFormat: TypeAlias = Literal["int8", "float8"]
MULTIPLE = 16
"""Of which both sides of a weight are, as tensor cores require; other layers are not quantized."""
LEAST_ROWS = 32
"""Rows to which inputs are padded: CUDA's product of int8 takes more than 16."""
SMALLEST = 1e-12
"""Least of the largest values, so that a row of zeros has a scale."""


@dataclass(frozen=True, slots=True)
class Format:
    """A format of 8 bits: its dtype, its largest value, and the compute capability of the first GPUs that have it."""

    dtype: torch.dtype
    largest: float
    capability: tuple[int, int]


FORMATS: dict[QuantizedFormat, Format] = {
    "int8": Format(torch.int8, 127, (8, 0)),
    "float8": Format(torch.float8_e4m3fn, 448, (8, 9)),
}
BY_DTYPE = {each.dtype: each for each in FORMATS.values()}


class QuantizedLinear(nn.Linear):
    """A linear layer with a quantized weight.

    Args:
        layer: with the weight in full, which may be on another device.
        device: where it is quantized.

    Attributes:
        weight: its rows in 8 bits.
        scale: of each row, (outputs,).
        full_dtype: of the weight before.
    """

    scale: Tensor

    def __init__(self, layer: nn.Linear, name: QuantizedFormat, device: torch.device) -> None:
        nn.Module.__init__(self)  # without the weights that nn.Linear makes
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.full_dtype = layer.weight.dtype
        rows, scale = quantize_rows(layer.weight.detach().to(device), FORMATS[name])
        self.weight = nn.Parameter(rows, requires_grad=False)
        self.bias = layer.bias
        self.register_buffer("scale", scale[:, 0], persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        return multiply(input, self.weight, self.scale, self.bias)

    def store(self, weight: Tensor) -> None:
        """Quantize another weight, in place."""
        rows, scale = quantize_rows(weight.to(self.weight.device), BY_DTYPE[self.weight.dtype])
        self.weight.copy_(rows)
        self.scale.copy_(scale[:, 0])


def can_quantize(layer: nn.Linear) -> bool:
    """Return whether the sides of a layer's weight are multiples of what tensor cores require."""
    return layer.in_features % MULTIPLE == 0 and layer.out_features % MULTIPLE == 0


def quantize_rows(x: Tensor, format: Format) -> tuple[Tensor, Tensor]:
    """Return the rows of x (rows, n) in 8 bits, and their scales (rows, 1) in float32. NaN and infinity become NaN."""
    norm = cast("Callable[..., Tensor]", cast("Any", torch.linalg).vector_norm)
    largest = norm(x, inf, dim=-1, keepdim=True, dtype=torch.float32)
    scale = largest.clamp(min=SMALLEST) / format.largest
    scaled = x / scale
    return (scaled.round_() if format.dtype == torch.int8 else scaled).to(format.dtype), scale


def multiply(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x (..., inputs) times a quantized weight (outputs, inputs), plus the bias, in the dtype of x.

    Args:
        scale: of the weight's rows, (outputs,).
    """
    rows, row_scale = quantize_rows(x.reshape(-1, x.shape[-1]), BY_DTYPE[weight.dtype])
    product = _multiply_int8 if weight.dtype == torch.int8 else _multiply_float8
    y = product(rows, row_scale, weight, scale[None], x.dtype)
    y = y if bias is None else y.add_(bias)  # in place, as the product in float32 is large
    return y.to(x.dtype).view(*x.shape[:-1], len(weight))


def _multiply_int8(
    rows: Tensor, row_scale: Tensor, weight: Tensor, scale: Tensor, _dtype: torch.dtype
) -> Tensor:
    """Return the product in float32, because sums may be larger than half precision holds."""
    missing = LEAST_ROWS - len(rows)
    padded = pad(rows, (0, 0, 0, missing)) if missing > 0 else rows
    sums = cast("Any", torch)._int_mm(padded, weight.t())[: len(rows)]
    return (sums * row_scale).mul_(scale)


def _multiply_float8(
    rows: Tensor, row_scale: Tensor, weight: Tensor, scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return the product, by way of bfloat16: all GPUs have it in no other dtype, and it rounds less than 8 bits do."""
    # without fast accumulation, which sums in fewer bits than the CPU does
    scaled_mm = cast("Any", torch)._scaled_mm
    product = scaled_mm(rows, weight.t(), row_scale, scale, out_dtype=torch.bfloat16, use_fast_accum=False)
    return product.to(dtype)


def explain_missing_format(name: QuantizedFormat, device: torch.device) -> str | None:
    """Return why layers in a format do not run on a device and what to do, or None if they do."""
    is_cuda = device.type == "cuda" and torch.version.cuda is not None
    if not is_cuda and device.type != "cpu":
        return f"it runs on NVIDIA GPUs and on the CPU, and the device is {device}"
    if is_cuda:
        needed, found = FORMATS[name].capability, torch.cuda.get_device_capability(device)
        if found < needed:
            least, own = (".".join(map(str, version)) for version in (needed, found))
            return f"it needs a GPU of compute capability {least} or later, and {device} has {own}"
    return _explain_failed_product(name, device)


def _explain_failed_product(name: QuantizedFormat, device: torch.device) -> str | None:
    """Multiply small matrices: torch's builds differ in what they have for a GPU."""
    layer = QuantizedLinear(nn.Linear(64, 64, device=device).requires_grad_(False), name, device)
    try:
        layer(torch.ones(2 * LEAST_ROWS, 64, device=device)).sum().item()
    except RuntimeError as error:
        first = str(error).partition("\n")[0]
        return f"this build of torch cannot multiply in it on {device}: {first}"
    return None
