"""What of the lists of a block mask each CTA goes through: all of them, or a piece of long ones.

As in `csrc/sm80/lists/pieces.h` and `cut.h`. What pieces leave is added up by another kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flash_attn2.io.lists import INDEX_BYTES, Row, Step, merged, sectors

_LEAST_ENTRIES = 64  # of a piece
_LEAST_PIECES = 32  # that a mask may be cut into
_WARP = 32


@dataclass(frozen=True)
class ListedCta:
    """One CTA of a launch, for each (batch, head)."""

    block: int  # of the queries or keys of a CTA
    rows: Sequence[Row]  # forward: one or two, as far as they are this CTA's
    steps: Sequence[Step]
    pieces: int = 1  # that the lists of the block are cut into
    searched: int = 0  # sectors of `cols` that are looked at to find where


def _size(entries: int, lists: int) -> int:
    """Entries that a piece of a mask has at least."""
    return max(-(-entries // max(lists // 2, _LEAST_PIECES)), _LEAST_ENTRIES)


def _pieces(entries: int, size: int) -> int:
    return 1 if entries < 2 * size else entries // size


def forward_ctas(rows: Sequence[Row], rows_each: int) -> list[ListedCta]:
    """In the order of their queries. A CTA merges the lists of its rows."""
    blocks = [rows[first : first + rows_each] for first in range(0, len(rows), rows_each)]
    size = _size(sum(len(row.cols) for row in rows), len(blocks))
    ctas = []
    for block, own in enumerate(blocks):
        entries = sum(len(row.cols) for row in own)
        pieces = _pieces(entries, size)
        for i in range(pieces):
            searched, part = 0, own
            if pieces > 1:
                begin, end = (entries * j // pieces for j in (i, i + 1))
                searched, part = _cut(own, begin, end)
            steps = merged(part, rows_each)
            ctas.append(ListedCta(block, part, steps, pieces, searched))
    return ctas


def backward_ctas(columns: Sequence[Sequence[Step]], blocks_each: int) -> list[ListedCta]:
    """In the order of their keys, of which each column has those of so many CTAs."""
    lists = len(columns) * blocks_each
    size = _size(sum(map(len, columns)) * blocks_each, lists)
    ctas = []
    for block in range(lists):
        steps = columns[block // blocks_each]
        pieces = _pieces(len(steps), size)
        for i in range(pieces):
            begin, end = (len(steps) * j // pieces for j in (i, i + 1))
            ctas.append(ListedCta(block, (), steps[begin:end], pieces))
    return ctas


def _cut(rows: Sequence[Row], begin: int, end: int) -> tuple[int, list[Row]]:
    """Entries [begin, end) of one or two lists, counted from the last block of keys."""
    searched = 0
    taken = []
    for count in (begin, end):
        sectors_seen, of_rows = _first(rows, count)
        searched += sectors_seen
        taken.append(of_rows)
    parts = []
    for row, before, until in zip(rows, *taken, strict=True):
        size = len(row.cols)
        own = slice(size - max(until, before), size - before)
        parts.append(Row(row.begin + own.start, row.cols[own], row.tiles[own]))
    return searched, parts


def _first(rows: Sequence[Row], count: int) -> tuple[int, list[int]]:
    """How many of the first `count` entries each list has, as a warp finds out; those of a block
    of keys stay together. Before, the sectors that it looks at."""
    if len(rows) == 1:
        return 0, [count]
    first, second = (row.cols[::-1] for row in rows)
    low, high = max(count - len(second), 0), min(count, len(first))
    searched = 0
    while low < high:
        step = -(-(high - low) // _WARP)
        places = range(low, min(high, low + _WARP * step), step)
        searched += _looked_at(rows[0], places)
        searched += _looked_at(rows[1], [count - i - 1 for i in places])
        lanes = sum(first[i] >= second[count - i - 1] for i in places)
        beyond = low + lanes * step
        high = min(high, beyond)
        if lanes > 0:
            low = beyond - step + 1
    taken = [low, count - low]
    if low > 0 and taken[1] < len(second):
        searched += 2
        taken[1] += first[low - 1] == second[taken[1]]
    return searched, taken


def _looked_at(row: Row, places: Sequence[int]) -> int:
    """Sectors of these entries, counted from the last of a list."""
    last = row.begin + len(row.cols) - 1
    return len({sectors(0, last - place + 1, INDEX_BYTES) for place in places})
