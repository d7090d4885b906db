"""How the kernels of group norm divide an image among programs: a function of its size alone.

The numbers were chosen by arithmetic for GPUs from 82 to 132 multiprocessors, not measured. They do not depend on the
number of images, so that an image's result does not either.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import gcd

TILE = 4096
"""Elements that a program has in registers: 16 for each thread, in two loads of 16 bytes in half precision."""
WARPS = 8
REGISTERS = 80
"""Of a thread, so that a multiprocessor has 3 programs at a time."""
PROGRAMS = 256
"""Most programs of one image in the first kernel. The second, which reads what they wrote, has twice as many."""
MAX_STATISTICS = 8192
"""Most numbers of each kind that a program of the second kernel reads: 32 for each thread."""
CHUNK = 128
"""Most channels of a chunk, unless a group has more than half of them: 256 bytes of a row in half precision."""
MIN_CHUNK = 64
"""Channels that are read together even if they are more than MAX_CHUNK_GROUPS groups: a line of the cache."""
MAX_CHUNK_GROUPS = 16
"""Groups of a chunk, since a program of the second kernel has numbers of each part and group in registers."""
MAX_GROUP_SIZE = 4096
"""Channels of a group that still fit the registers of a program."""


@dataclass(frozen=True, slots=True)
class GroupNormPlan:
    """The division of one image (positions, channels).

    Attributes:
        chunk_groups: groups whose channels one program reads; chunks are as many of these as cover all groups.
        part_rows: positions that a program of the first kernel reads; parts are as many of these as cover all.
        tile_rows: the same for the second kernel, tiles.
        block_rows, block_channels: what is in registers at a time. block_channels, block_groups and block_parts are
            the powers of 2 that hold a chunk's channels and groups, and an image's parts at any size.
    """

    positions: int
    channels: int
    groups: int
    chunk_groups: int
    chunks: int
    parts: int
    part_rows: int
    tiles: int
    tile_rows: int
    block_rows: int
    block_channels: int
    block_groups: int
    block_parts: int


@lru_cache(maxsize=1024)
def plan_group_norm(
    channels: int, positions: int, groups: int, tile: int = TILE, programs: int = PROGRAMS
) -> GroupNormPlan:
    """Return how one image is divided. `groups` divides `channels`, and `tile` is a power of 2.

    Plans are kept, since a network asks for the same few at every step.
    """
    size = channels // groups
    chunk_groups = choose_chunk(size, groups)
    chunks = _divide(groups, chunk_groups)
    block_channels = _round_up(chunk_groups * size)
    block_rows = max(1, tile // block_channels)
    block_groups = _round_up(chunk_groups)
    most_parts = min(_round_down(programs // chunks), MAX_STATISTICS // block_groups)
    most_tiles = _round_down(2 * programs // chunks)
    parts, part_rows = _split(positions, most_parts, block_rows)
    tiles, tile_rows = _split(positions, most_tiles, block_rows)
    return GroupNormPlan(
        positions=positions,
        channels=channels,
        groups=groups,
        chunk_groups=chunk_groups,
        chunks=chunks,
        parts=parts,
        part_rows=part_rows,
        tiles=tiles,
        tile_rows=tile_rows,
        block_rows=block_rows,
        block_channels=block_channels,
        block_groups=block_groups,
        block_parts=most_parts,
    )


def choose_chunk(size: int, groups: int) -> int:
    """Return how many groups of `size` channels one program reads.

    Rows of a chunk should begin at multiples of 8 channels, for loads of 16 bytes, and fill a power of 2: of 32 groups
    of 10 channels 12 are read together, 120 of 128 channels.
    """
    limit = CHUNK if 2 * size <= CHUNK else max(2 * CHUNK, _round_up(size))
    most = min(groups, max(MAX_CHUNK_GROUPS, MIN_CHUNK // size))
    fitting = [count for count in range(1, most + 1) if _round_up(count * size) <= limit]

    def rate(count: int) -> tuple[int, float, int]:
        filled = groups * size / (_divide(groups, count) * _round_up(count * size))
        return gcd(count * size, 8), filled, count

    return max(fitting, key=rate)


def _split(positions: int, most: int, step: int) -> tuple[int, int]:
    """Return the number of parts, at most `most`, and the positions of each but the last, a multiple of `step`."""
    rows = _divide(_divide(positions, most), step) * step
    return _divide(positions, rows), rows


def _divide(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _round_up(number: int) -> int:
    """Return the least power of 2 that is not less."""
    return 1 << (number - 1).bit_length()


def _round_down(number: int) -> int:
    """Return the greatest power of 2 that is not more, at least 1."""
    return 1 << max(0, number.bit_length() - 1)
