"""The kernels that derive a mask's lists by keys (`csrc/sm80/lists/columns.h`), and who reads them.

They move next to nothing beside the others, but it is counted like the rest. A thread has a row of
the mask, in which it searches for the blocks of keys of its CTA.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flash_attn2.io.counts import SECTOR_BYTES, Kernel, Shared, Traffic
from flash_attn2.io.lists import INDEX_BYTES, OFFSET_BYTES, Row, Step, array_bytes, sectors
from flash_attn2.io.pieces import ListedCta
from flash_attn2.io.plans import BwdPlan

NAMES = ("MaskRowsKernel", "MaskColumnsKernel")

_WARP = 32
_GROUP = 64  # blocks of keys of a CTA for columns
_ENTRY_BYTES = 16  # of a list by keys, and of where a list lies
_SUM_BYTES = 8
_AHEAD = 2  # entries that a main CTA begins with


def kernels(
    plan: BwdPlan, rows: Sequence[Row], columns: Sequence[Sequence[Step]], pack: int
) -> tuple[Kernel, Kernel]:
    """The one for rows, and those for columns: one that counts, and one that fills them in."""
    return _rows(plan, rows), _columns(plan, rows, columns, pack)


def _rows(plan: BwdPlan, rows: Sequence[Row]) -> Kernel:
    """How far each list is in order."""
    asked = sum(sum(_by_warps(row.begin, len(row.cols), INDEX_BYTES)) for row in rows)
    entries = sum(len(row.cols) for row in rows)
    return Kernel(
        NAMES[0],
        ctas=plan.mask_rows_grid,
        reads={
            "block_mask_offsets": Traffic(
                2 * len(rows) * SECTOR_BYTES, array_bytes(len(rows) + 1, OFFSET_BYTES)
            ),
            "block_mask_cols": Traffic(asked * SECTOR_BYTES, array_bytes(entries, INDEX_BYTES)),
        },
        writes={
            "workspace": Traffic(len(rows) * SECTOR_BYTES, array_bytes(len(rows), _ENTRY_BYTES))
        },
    )


def _by_warps(begin: int, count: int, size: int) -> Iterator[int]:
    """Sectors of so many elements from `begin` on, of which a warp takes 32 at a time."""
    for first in range(0, count, _WARP):
        yield sectors(begin + first, begin + min(first + _WARP, count), size)


def _columns(
    plan: BwdPlan, rows: Sequence[Row], columns: Sequence[Sequence[Step]], pack: int
) -> Kernel:
    groups, wide = plan.mask_columns_grid, _GROUP // pack  # columns of a group
    entries = sum(map(len, columns))
    own = [min(wide, len(columns) - first) for first in range(0, len(columns), wide)]
    by_row = sum(_by_warps(0, len(rows), _ENTRY_BYTES)) * groups
    search = _searches(rows, groups)
    # A group begins behind the sum of all others before it, a column behind those of its group.
    sums = sum(_by_warps(0, groups, _SUM_BYTES)) * groups
    places = sum(_turns(count, pack) for count in own)
    counts = sum(_split(count, pack, INDEX_BYTES) for count in own)
    lists = sum(_split(count, pack, _ENTRY_BYTES) for count in own)
    once = {
        "by_row": array_bytes(len(rows), _ENTRY_BYTES),
        "sums": array_bytes(groups, _SUM_BYTES),
        "counts": array_bytes(len(columns), INDEX_BYTES),
        "by_col": array_bytes(len(columns), _ENTRY_BYTES),
        "entries": array_bytes(entries, _ENTRY_BYTES),
    }
    return Kernel(
        NAMES[1],
        ctas=2 * groups,
        reads={
            "block_mask_cols": search * 2,
            "block_mask_tiles": _tiles(rows, pack),
            "workspace": Traffic(
                (2 * by_row + sums + places + counts) * SECTOR_BYTES,
                2 * once["by_row"] + once["sums"] + once["counts"],
            ),
        },
        writes={
            "workspace": Traffic(
                (counts + groups + lists) * SECTOR_BYTES + _filled(columns),
                once["counts"] + once["sums"] + once["by_col"] + once["entries"],
            ),
        },
    )


def _split(count: int, pack: int, size: int) -> int:
    """Sectors of an array of a group's columns, of which each of two warps has half."""
    first = min(count, _WARP // pack)
    return sectors(0, first, size) + sectors(first, count, size)


def _turns(count: int, pack: int) -> int:
    """How often warps look at a count of another column: each lane adds up those before its own."""
    half = _WARP // pack
    return min(count, half) - 1 + (count - 1 if count > half else 0)


def _filled(columns: Sequence[Sequence[Step]]) -> int:
    """Bytes that are asked for when lists are stored: a warp has 32 rows, and goes through its
    columns one by one."""
    asked = begin = 0
    for column in columns:
        for _, steps in itertools.groupby(column, lambda step: step.block // _WARP):
            end = begin + sum(1 for _ in steps)
            asked += sectors(begin, end, _ENTRY_BYTES)
            begin = end
    return asked * SECTOR_BYTES


def _tiles(rows: Sequence[Row], pack: int) -> Traffic:
    """Likewise when tiles are looked up, by blocks of keys."""
    touched = {
        (index // _WARP, col, (row.begin + i) * INDEX_BYTES // SECTOR_BYTES)
        for index, row in enumerate(rows)
        for i, col in enumerate(row.cols)
    }
    entries = sum(len(row.cols) for row in rows)
    return Traffic(len(touched) * SECTOR_BYTES, array_bytes(entries, INDEX_BYTES))


def _searches(rows: Sequence[Row], groups: int) -> Traffic:
    """What is looked at of `cols` to find the blocks of keys of each group, once for all rows: by
    halving, then one by one up to the first that is behind the group."""
    begin = torch.tensor([row.begin for row in rows], device="cpu")
    end = begin + torch.tensor([len(row.cols) for row in rows], device="cpu")
    cols = torch.tensor([col for row in rows for col in row.cols], device="cpu")
    touched = torch.zeros(sectors(0, len(cols), INDEX_BYTES), dtype=torch.bool, device="cpu")
    asked = 0
    for first in range(0, groups * _GROUP, _GROUP):
        low, high = begin.clone(), end.clone()
        while len(active := (low < high).nonzero().flatten()):
            middle = (low[active] + high[active]) // 2
            asked += _look(active, middle, touched)
            before = cols[middle] < first
            low[active[before]] = middle[before] + 1
            high[active[~before]] = middle[~before]
        active = (low < end).nonzero().flatten()
        while len(active):
            entry = low[active]
            asked += _look(active, entry, touched)
            low[active] += 1
            active = active[(cols[entry] < first + _GROUP) & (entry + 1 < end[active])]
    return Traffic(asked * SECTOR_BYTES, int(touched.sum()) * SECTOR_BYTES)


def _look(row: Tensor, entry: Tensor, touched: Tensor) -> int:
    """Sectors that warps ask for, each of whose lanes has a row and looks at an entry."""
    sector = entry * INDEX_BYTES // SECTOR_BYTES
    touched[sector] = True
    by_warp: Tensor = torch.unique(row // _WARP * len(touched) + sector)
    return by_warp.numel()


def list_bytes(columns: Sequence[Sequence[Step]]) -> int:
    """Of where the lists lie."""
    return array_bytes(len(columns), _ENTRY_BYTES)


def read_by_main(
    ctas: Sequence[ListedCta], columns: Sequence[Sequence[Step]], pairs: int
) -> Traffic:
    """By one thread of each CTA: where its list lies, and its entries one by one."""
    entries = sum(map(len, columns))
    return Traffic(
        pairs * sum(1 + len(cta.steps) for cta in ctas) * SECTOR_BYTES,
        list_bytes(columns) + array_bytes(entries, _ENTRY_BYTES),
    )


def with_entries(shared: Shared, ctas: Sequence[ListedCta], pairs: int) -> Shared:
    """Entries but for the first are copied behind what is worked on."""
    copied = pairs * sum(max(len(cta.steps) - _AHEAD, 0) for cta in ctas)
    return replace(shared, cp_async=shared.cp_async + copied)
