"""Which keys the queries of each rank see: what a gather has to send."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor

from flash_attn2._impl.problem import BLOCK
from flash_attn2.distributed.chunks import Ranges
from flash_attn2.masks import BlockMask
from flash_attn2.masks.leaves import Window


def needed_keys(rows: Ranges, pattern: Window | BlockMask, seqlen: int) -> Ranges:
    """Keys that some query of a rank's rows sees: exactly under a window, by whole blocks of 64
    queries and keys under a mask, where those of all heads and sequences count."""
    if isinstance(pattern, Window):
        of_ranks = [_of_window(rows.of(rank), pattern, seqlen) for rank in range(rows.ranks)]
    else:
        of_ranks = _of_mask(rows, pattern, seqlen)
    counts = torch.tensor([0, *(len(found) for found in of_ranks)])
    bounds = torch.tensor([x for found in of_ranks for x in found], dtype=torch.int64).view(-1, 2)
    return Ranges(bounds[:, 0].contiguous(), bounds[:, 1].contiguous(), counts.cumsum(0))


def _of_window(
    rows: Iterable[tuple[int, int]], window: Window, seqlen: int
) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for start, end in sorted(rows):
        first = 0 if window.left < 0 else max(start - window.left, 0)
        last = seqlen if window.right < 0 else min(end + window.right, seqlen)
        if found and first <= found[-1][1]:
            first, last = found[-1][0], max(found.pop()[1], last)
        found.append((first, last))
    return found


def _of_mask(rows: Ranges, mask: BlockMask, seqlen: int) -> list[list[tuple[int, int]]]:
    offsets, firsts, lasts = _runs(mask)
    # The runs of each range, by the mask's batches and heads.
    begins = offsets[..., rows.starts // BLOCK].flatten(0, -2)
    ends = offsets[..., (rows.ends + BLOCK - 1) // BLOCK].flatten(0, -2)
    found = []
    for some in itertools.starmap(slice, itertools.pairwise(rows.offsets.tolist())):
        bounds = torch.stack((begins[:, some].flatten(), ends[:, some].flatten()), 1).tolist()
        parts = [slice(first, last) for first, last in bounds]
        found.append(_joined([firsts[x] for x in parts], [lasts[x] for x in parts], seqlen))
    return found


def _runs(mask: BlockMask) -> tuple[Tensor, Tensor, Tensor]:
    """The blocks of each row of the mask as runs of neighbours: offsets of rows, shaped as the
    mask's, and the first block of each run and the one behind its last."""
    cols = mask.cols
    begins = torch.ones(cols.numel() + 1, dtype=torch.bool)
    begins[1:-1] = cols[1:] != cols[:-1] + 1
    begins[mask.row_offsets.flatten()] = True
    places = begins.nonzero().flatten()  # and one behind them
    offsets = torch.searchsorted(places, mask.row_offsets)
    return offsets, cols[places[:-1]].long(), cols[places[1:] - 1].long() + 1


def _joined(firsts: list[Tensor], lasts: list[Tensor], seqlen: int) -> list[tuple[int, int]]:
    """Keys of runs of blocks, those of several once."""
    size = -(-seqlen // BLOCK) + 1
    bounds = (torch.cat([torch.empty(0, dtype=torch.int64), *x]) for x in (firsts, lasts))
    opened, closed = (torch.bincount(x, minlength=size) for x in bounds)
    seen = ((opened - closed).cumsum(0) > 0).to(torch.int8)
    steps = torch.cat([seen[:1], seen.diff()])
    starts, ends = ((steps == step).nonzero().flatten() * BLOCK for step in (1, -1))
    return list(zip(starts.tolist(), ends.clamp(max=seqlen).tolist(), strict=True))


def rows_sent(rows: Ranges, needed: Ranges, seqlen: int) -> tuple[Tensor, Tensor]:
    """int64 (ranks,): of its rows, those that each rank sends to others, counted for each of them,
    and those that it gets."""

    def overlap(of_rows: Tensor, of_needed: Tensor) -> Tensor:
        """Of each rank's rows, how many times keys are needed; both are moved by so much."""
        before = _Coverage(needed.starts + of_needed, needed.ends + of_needed).before
        return rows.sums(before(rows.ends + of_rows) - before(rows.starts + of_rows))

    def apart(ranges: Ranges) -> Tensor:
        """A place of their own for the ranges of each rank."""
        return torch.repeat_interleave(ranges.offsets.diff()) * (seqlen + 1)

    none = torch.zeros(1, dtype=torch.int64)
    own = overlap(apart(rows), apart(needed))
    return overlap(none, none) - own, needed.rows - own


class _Coverage:
    """How many of some ranges each place is in."""

    def __init__(self, starts: Tensor, ends: Tensor) -> None:
        bounds = torch.cat([starts.new_zeros(1), starts, ends])
        steps = torch.cat([starts.new_zeros(1), torch.ones_like(starts), torch.full_like(ends, -1)])
        self._bounds, order = bounds.sort(stable=True)
        self._counts = steps[order].cumsum(0)
        sums = (self._counts[:-1] * self._bounds.diff()).cumsum(0)
        self._sums = torch.cat([sums.new_zeros(1), sums])

    def before(self, places: Tensor) -> Tensor:
        """The sum over all places before each of these."""
        i = torch.searchsorted(self._bounds, places.contiguous(), right=True) - 1
        return self._sums[i] + self._counts[i] * (places - self._bounds[i])
