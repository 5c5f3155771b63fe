"""How much work the rows of a pattern are: visible pairs of query and key."""

from __future__ import annotations

import torch
from torch import Tensor

from flash_attn2._impl.problem import BLOCK
from flash_attn2.masks import Pattern
from flash_attn2.masks.build import count_pairs
from flash_attn2.masks.leaves import Window

ALL = Window(-1, -1)
"""The pattern of no mask."""


class Work:
    """Visible pairs of a sequence's queries with its own keys, of a head and a sequence of a batch;
    where those differ, the mean."""

    def __init__(self, pattern: Pattern, seqlen: int) -> None:
        self._seqlen = seqlen
        self._window = pattern if isinstance(pattern, Window) else None
        if self._window is None:
            batch, heads = pattern.batch, pattern.heads
            pairs = count_pairs(pattern, seqlen, batch=batch, heads=heads).double()
            self._pairs = pairs / (batch * heads)  # of blocks of 64 queries
            zero = torch.zeros(1, dtype=torch.float64)
            self._before_blocks = torch.cat([zero, self._pairs.cumsum(0)])

    def before(self, rows: Tensor) -> Tensor:
        """float64: pairs of all queries before each of these rows (int64, from 0 to the length).

        Exact for windows and between blocks of 64 queries; within a block queries count alike.
        """
        if self._window is not None:
            return _before(rows, self._seqlen, self._window).double()
        block = rows // BLOCK
        inside = rows - block * BLOCK
        size = (self._seqlen - block * BLOCK).clamp(1, BLOCK)
        own = torch.cat([self._pairs, self._pairs.new_zeros(1)])[block]
        return self._before_blocks[block] + own * inside / size

    @property
    def total(self) -> float:
        """Pairs of all rows."""
        return float(self.before(torch.tensor([self._seqlen]))[0])


def _before(rows: Tensor, seqlen: int, window: Window) -> Tensor:
    """Of query i, keys from max(0, i - left) to min(seqlen, i + right + 1)."""
    ends = rows * seqlen
    if window.right >= 0:
        open_rows = rows.clamp(max=max(seqlen - window.right - 1, 0))
        ends = _triangle(open_rows) + open_rows * window.right + (rows - open_rows) * seqlen
    if window.left < 0:
        return ends
    closed_rows = (rows - window.left).clamp(min=1) - 1  # with a begin beyond 0
    return ends - _triangle(closed_rows)


def _triangle(count: Tensor) -> Tensor:
    return count * (count + 1) // 2
