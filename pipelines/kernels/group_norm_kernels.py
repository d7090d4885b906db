"""The Triton kernels of group norm with SiLU. Only `group_norm` imports this module, where Triton is installed.

The first measures mean and squared deviations of each group in each part of an image, without cancellation (Welford,
"Note on a method for calculating corrected sums of squares and products", 1962). The second combines the parts in a
fixed order (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
1979), then normalizes. Both read tiles of positions by channels, which lie in memory row by row.
"""

import triton
import triton.language as tl
from torch import Tensor

from pipelines.kernels.group_norm_plan import REGISTERS, WARPS, GroupNormPlan
from pipelines.kernels.launch import Launch


def plan_launches(
    plan: GroupNormPlan,
    x: Tensor,
    vectors: tuple[Tensor, Tensor, Tensor | None],
    eps: float,
    silu: bool,
    buffers: tuple[Tensor, Tensor, Tensor],
) -> tuple[Launch, Launch]:
    """Return the two launches, in order.

    Args:
        x: (B, C, H, W), channels-last.
        vectors: weight and bias (C,), and what is added to x before (B, C), or None. They are contiguous.
        buffers: means and squared deviations (B, parts, groups), float32, and the output, which is like x.
    """
    weight, bias, shift = vectors
    means, squares, output = buffers
    shared: dict[str, Tensor | int | float] = {
        "x": x,
        "shift": x if shift is None else shift,
        "has_shift": shift is not None,
        "means": means,
        "squares": squares,
        "positions": plan.positions,
        "parts": plan.parts,
        "part_rows": plan.part_rows,
        "channels": plan.channels,
        "groups": plan.groups,
        "group_size": plan.channels // plan.groups,
        "chunk_groups": plan.chunk_groups,
        "block_rows": plan.block_rows,
        "block_channels": plan.block_channels,
        "block_groups": plan.block_groups,
    }
    normalizing: dict[str, Tensor | int | float] = {
        **shared,
        "weight": weight,
        "bias": bias,
        "output": output,
        "eps": eps,
        "tile_rows": plan.tile_rows,
        "block_parts": plan.block_parts,
        "silu": silu,
    }
    images, chunks = x.shape[0], plan.chunks
    return (
        Launch(measure_groups, (plan.parts, chunks, images), shared, WARPS, REGISTERS),
        Launch(normalize_groups, (plan.tiles, chunks, images), normalizing, WARPS, REGISTERS),
    )


@triton.jit(do_not_specialize=["positions", "parts", "part_rows"])
def measure_groups(
    x: tl.tensor,
    shift: tl.tensor,
    means: tl.tensor,
    squares: tl.tensor,
    positions: tl.tensor,
    parts: tl.tensor,
    part_rows: tl.tensor,
    has_shift: tl.constexpr,
    channels: tl.constexpr,
    groups: tl.constexpr,
    group_size: tl.constexpr,
    chunk_groups: tl.constexpr,
    block_rows: tl.constexpr,
    block_channels: tl.constexpr,
    block_groups: tl.constexpr,
) -> None:
    """Write the mean and the sum of squared deviations of each group of a chunk, in one part of one image."""
    part, chunk, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    column, group = tl.arange(0, block_channels), tl.arange(0, block_groups)
    channel = chunk * (chunk_groups * group_size) + column
    inside = (column < chunk_groups * group_size) & (channel < channels)
    first = part * part_rows
    rows = tl.minimum(part_rows, positions - first)
    # 64 bits for the part's address alone: offsets within it are small
    start = x + (image.to(tl.int64) * positions + first) * channels
    added = load_shift(shift + image * channels + channel, inside, has_shift, block_channels)
    mean, square = measure_channels(start, rows, channel, inside, added, channels, block_rows, block_channels)

    is_member = (column // group_size)[None, :] == group[:, None]
    is_member = is_member & inside[None, :]
    group_mean = tl.sum(tl.where(is_member, mean[None, :], 0), 1) / group_size
    delta = mean[None, :] - group_mean[:, None]
    group_square = tl.sum(tl.where(is_member, square[None, :] + rows * delta * delta, 0), 1)
    is_group = (group < chunk_groups) & (chunk * chunk_groups + group < groups)
    target = (image * parts + part) * groups + chunk * chunk_groups + group
    tl.store(means + target, group_mean, mask=is_group)
    tl.store(squares + target, group_square, mask=is_group)


@triton.jit
def measure_channels(
    start: tl.tensor,
    rows: tl.tensor,
    channel: tl.tensor,
    inside: tl.tensor,
    added: tl.tensor,
    channels: tl.constexpr,
    block_rows: tl.constexpr,
    block_channels: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return the mean and the sum of squared deviations of each channel over `rows` rows.

    Each element of the tile has a running mean; how many values it has seen differs by row at the end alone.
    """
    row = tl.arange(0, block_rows)
    tile = start + (row * channels)[:, None] + channel[None, :]
    mean = tl.zeros([block_rows, block_channels], tl.float32)
    square = tl.zeros([block_rows, block_channels], tl.float32)
    count = tl.zeros([block_rows], tl.float32)
    following = tl.load(tile, mask=(row < rows)[:, None] & inside[None, :], other=0)
    for done in range(0, rows, block_rows):
        value = following.to(tl.float32) + added[None, :]
        # asked for now, so that it arrives while this tile is counted
        ahead = done + block_rows
        following = tl.load(
            tile + ahead * channels, mask=(row < rows - ahead)[:, None] & inside[None, :], other=0
        )
        is_row = row < rows - done
        count += is_row.to(tl.float32)
        share = tl.where(is_row, 1 / tl.maximum(count, 1), 0)
        delta = value - mean
        mean += delta * share[:, None]
        square += tl.where(is_row[:, None], delta * (value - mean), 0)
    center = average(mean, count[:, None], rows)
    delta = mean - center[None, :]
    return center, tl.sum(square + count[:, None] * delta * delta, 0)


@triton.jit
def average(value: tl.tensor, count: tl.tensor, total: tl.tensor) -> tl.tensor:
    """Return the mean over the rows of `value`, each counted `count` times, which makes `total`.

    The sum of large values is rounded; the sum of their differences from a first estimate is not.
    """
    estimate = tl.sum(value * count, 0) / total
    return estimate + tl.sum((value - estimate[None, :]) * count, 0) / total


@triton.jit
def load_shift(
    pointers: tl.tensor, inside: tl.tensor, has_shift: tl.constexpr, block_channels: tl.constexpr
) -> tl.tensor:
    """Return what is added to each channel of a chunk."""
    added = tl.zeros([block_channels], tl.float32)
    if has_shift:
        added = tl.load(pointers, mask=inside, other=0).to(tl.float32)
    return added


@triton.jit(do_not_specialize=["eps", "positions", "parts", "part_rows", "tile_rows"])
def normalize_groups(
    x: tl.tensor,
    shift: tl.tensor,
    means: tl.tensor,
    squares: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    output: tl.tensor,
    eps: tl.tensor,
    positions: tl.tensor,
    parts: tl.tensor,
    part_rows: tl.tensor,
    tile_rows: tl.tensor,
    has_shift: tl.constexpr,
    silu: tl.constexpr,
    channels: tl.constexpr,
    groups: tl.constexpr,
    group_size: tl.constexpr,
    chunk_groups: tl.constexpr,
    block_rows: tl.constexpr,
    block_channels: tl.constexpr,
    block_groups: tl.constexpr,
    block_parts: tl.constexpr,
) -> None:
    """Normalize a chunk of channels in `tile_rows` positions of one image."""
    chunk, image = tl.program_id(1), tl.program_id(2)
    row, column = tl.arange(0, block_rows), tl.arange(0, block_channels)
    channel = chunk * (chunk_groups * group_size) + column
    inside = (column < chunk_groups * group_size) & (channel < channels)
    first = tl.program_id(0) * tile_rows
    rows = tl.minimum(tile_rows, positions - first)
    # 64 bits for the first row's address alone: offsets from it are small
    start = (image.to(tl.int64) * positions + first) * channels
    source = x + start + (row * channels)[:, None] + channel[None, :]
    target = output + start + (row * channels)[:, None] + channel[None, :]
    # asked for before the statistics, so that all this arrives while they are combined
    following = tl.load(source, mask=(row < rows)[:, None] & inside[None, :], other=0)
    factor = tl.load(weight + channel, mask=inside, other=0).to(tl.float32)
    offset = tl.load(bias + channel, mask=inside, other=0).to(tl.float32)
    added = load_shift(shift + image * channels + channel, inside, has_shift, block_channels)

    statistics = image * parts * groups + chunk * chunk_groups
    center, inverse = combine_parts(
        means + statistics,
        squares + statistics,
        column,
        groups - chunk * chunk_groups,
        eps,
        positions,
        part_rows,
        groups,
        group_size,
        chunk_groups,
        block_groups,
        block_parts,
    )
    scale = factor * inverse
    write_tiles(
        source, target, rows, inside, following, added, center, scale, offset, silu, channels, block_rows
    )


@triton.jit
def write_tiles(
    source: tl.tensor,
    target: tl.tensor,
    rows: tl.tensor,
    inside: tl.tensor,
    following: tl.tensor,
    added: tl.tensor,
    center: tl.tensor,
    scale: tl.tensor,
    offset: tl.tensor,
    silu: tl.constexpr,
    channels: tl.constexpr,
    block_rows: tl.constexpr,
) -> None:
    """Normalize `rows` rows of a chunk, of which the first tile is `following`."""
    row = tl.arange(0, block_rows)
    for done in range(0, rows, block_rows):
        value = following.to(tl.float32) + added[None, :]
        ahead = done + block_rows
        following = tl.load(
            source + ahead * channels, mask=(row < rows - ahead)[:, None] & inside[None, :], other=0
        )
        value = (value - center[None, :]) * scale[None, :] + offset[None, :]
        if silu:
            value = value * tl.sigmoid(value)
        value = value.to(target.dtype.element_ty)
        tl.store(target + done * channels, value, mask=(row < rows - done)[:, None] & inside[None, :])


@triton.jit
def combine_parts(
    means: tl.tensor,
    squares: tl.tensor,
    column: tl.tensor,
    groups_left: tl.tensor,
    eps: tl.tensor,
    positions: tl.tensor,
    part_rows: tl.tensor,
    groups: tl.constexpr,
    group_size: tl.constexpr,
    chunk_groups: tl.constexpr,
    block_groups: tl.constexpr,
    block_parts: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return the mean and the inverse deviation of the group of each channel of a chunk, over all parts of an image."""
    group, part = tl.arange(0, block_groups), tl.arange(0, block_parts)
    rows = tl.minimum(tl.maximum(positions - part * part_rows, 0), part_rows)
    inside = (rows > 0)[:, None] & (group < tl.minimum(chunk_groups, groups_left))[None, :]
    offsets = (part * groups)[:, None] + group[None, :]
    part_mean = tl.load(means + offsets, mask=inside, other=0)
    part_square = tl.load(squares + offsets, mask=inside, other=0)
    count = rows.to(tl.float32)[:, None]
    mean = average(part_mean, count, positions)
    delta = part_mean - mean[None, :]
    square = tl.sum(part_square + group_size * count * delta * delta, 0)
    inverse = 1 / tl.sqrt_rn(square / (positions.to(tl.float32) * group_size) + eps)
    is_member = (column // group_size)[None, :] == group[:, None]
    center = tl.sum(tl.where(is_member, mean[:, None], 0), 0)
    return center, tl.sum(tl.where(is_member, inverse[:, None], 0), 0)
