"""The Triton kernel of GEGLU. Only `geglu` imports this module, where Triton is installed."""

import triton
import triton.language as tl
from torch import Tensor

from pipelines.kernels.launch import Launch

TILE = 2048
"""Outputs of a program: 16 for each thread, so that it has 64 bytes in flight in half precision."""
WARPS = 4
REGISTERS = 40
"""Of a thread, so that a multiprocessor has 12 programs at a time."""
MAX_COLUMNS = 512


def plan_geglu(x: Tensor, output: Tensor) -> Launch:
    """Return the launch that writes the GEGLU of x (..., 2n) into `output` (..., n). Both are contiguous."""
    columns = output.shape[-1]
    rows = output.numel() // columns
    block_columns = min(MAX_COLUMNS, 1 << (columns - 1).bit_length())
    block_rows = TILE // block_columns
    arguments = {
        "x": x,
        "output": output,
        "rows": rows,
        "columns": columns,
        "block_rows": block_rows,
        "block_columns": block_columns,
    }
    grid = (-(-rows // block_rows), -(-columns // block_columns), 1)
    return Launch(write_geglu, grid, arguments, WARPS, REGISTERS)


@triton.jit(do_not_specialize=["rows"])
def write_geglu(
    x: tl.tensor,
    output: tl.tensor,
    rows: tl.tensor,
    columns: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
) -> None:
    """Write a * gelu(b) for a tile of rows and columns; a and b are the halves of each row of x."""
    # 64 bits for the tile's address alone: offsets within it are small
    first = tl.program_id(0).to(tl.int64) * block_rows
    row = tl.arange(0, block_rows)
    column = tl.program_id(1) * block_columns + tl.arange(0, block_columns)
    inside = (row < rows - first)[:, None] & (column < columns)[None, :]
    halves = x + first * (2 * columns) + (row * (2 * columns))[:, None] + column[None, :]
    a = tl.load(halves, mask=inside, other=0).to(tl.float32)
    b = tl.load(halves + columns, mask=inside, other=0).to(tl.float32)
    result = a * (0.5 * b * (1 + tl.erf(b * 0.7071067811865476)))
    target = output + first * columns + (row * columns)[:, None] + column[None, :]
    tl.store(target, result.to(output.dtype.element_ty), mask=inside)
