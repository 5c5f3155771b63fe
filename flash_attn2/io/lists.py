"""The lists of a block mask, by rows and by columns."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from flash_attn2._impl.problem import BLOCK
from flash_attn2.io.counts import SECTOR_BYTES
from flash_attn2.masks import BlockMask

INDEX_BYTES = 4  # of an entry's column, and of its tile
OFFSET_BYTES = 8
TILE_BYTES = BLOCK * 8  # a word for each query of a block
_WARP = 32  # entries of a list that a warp looks at together


class Row(NamedTuple):
    """What a block of queries lists."""

    begin: int  # place of its first entry in the mask
    cols: list[int]  # blocks of keys, ascending
    tiles: list[int]  # of bits; 0: all pairs are visible


class Step(NamedTuple):
    """A block of the other side that a CTA goes through, which may have two blocks of its own."""

    block: int
    tiles: tuple[int | None, ...]  # by the blocks of the CTA; None: this one does not list it

    @property
    def listed(self) -> int:
        return sum(tile is not None for tile in self.tiles)

    @property
    def partial(self) -> int:
        """Blocks whose bits are looked at."""
        return sum(tile is not None and tile > 0 for tile in self.tiles)


def rows_of(mask: BlockMask) -> list[Row]:
    """ValueError for a mask of several sequences or heads."""
    if mask.batch != 1 or mask.heads != 1:
        raise ValueError(
            "mask must be one for all sequences and heads, got one with batch "
            f"{mask.batch} and heads {mask.heads}"
        )
    offsets, cols, tiles = (x.flatten().tolist() for x in (mask.row_offsets, mask.cols, mask.tiles))
    return [
        Row(begin, cols[begin:end], tiles[begin:end]) for begin, end in itertools.pairwise(offsets)
    ]


def merged(rows: Sequence[Row], width: int) -> list[Step]:
    """Steps in ascending order of keys."""
    tiles: dict[int, list[int | None]] = {}
    for i, row in enumerate(rows):
        for col, tile in zip(row.cols, row.tiles, strict=True):
            tiles.setdefault(col, [None] * width)[i] = tile
    return [Step(col, tuple(tiles[col])) for col in sorted(tiles)]


def columns_of(rows: Sequence[Row], cols: int, pack: int) -> list[list[Step]]:
    """What `pack` neighbouring blocks of keys list of the queries, ascending."""
    columns: list[list[Step]] = [[] for _ in range(-(-cols // pack))]
    for index, row in enumerate(rows):
        tiles: dict[int, list[int | None]] = {}
        for col, tile in zip(row.cols, row.tiles, strict=True):
            tiles.setdefault(col // pack, [None] * pack)[col % pack] = tile
        for column, of_row in tiles.items():
            columns[column].append(Step(index, tuple(of_row)))
    return columns


def sectors(begin: int, end: int, size: int) -> int:
    """Sectors of the elements [begin, end) of an array, each of so many bytes."""
    if begin >= end:
        return 0
    return (end * size - 1) // SECTOR_BYTES - begin * size // SECTOR_BYTES + 1


def queue_sectors(rows: Sequence[Row]) -> int:
    """Sectors of `cols` (and of `tiles`) that a forward CTA asks for: its first warp looks at the
    last 32 entries of each list that are left, and takes those up to where it knows all lists
    (`csrc/sm80/lists/step_queue.h`)."""
    left = [len(row.cols) for row in rows]
    asked = 0
    while any(left):
        known = -1  # all entries of blocks from here on are known
        for row, end in zip(rows, left, strict=True):
            begin = max(end - _WARP, 0)
            asked += sectors(row.begin + begin, row.begin + end, INDEX_BYTES)
            if begin > 0:
                known = max(known, row.cols[begin])
        for i, row in enumerate(rows):
            begin = max(left[i] - _WARP, 0)
            left[i] -= sum(col >= known for col in row.cols[begin : left[i]])
    return asked


def array_bytes(elements: int, size: int) -> int:
    """Of an array that is touched all over, in whole sectors."""
    return sectors(0, elements, size) * SECTOR_BYTES
