"""Which rows of a sequence each rank has."""

from __future__ import annotations

import heapq
import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from flash_attn2._impl.problem import BLOCK
from flash_attn2.distributed.work import Work

CHUNK = 2048  # rows, where they are balanced by their work, unless they have to be fewer
CHUNKS_PER_RANK = 8  # at least, and no chunk is more work than one of so many
_FINE = 1.01  # max / mean of the ranks' work that is good enough
_MOST_CHUNKS = 2**18


class Ranges(NamedTuple):
    """Rows [starts, ends) that ranks have, each as int64 tensors, by rank and then by row."""

    starts: Tensor
    ends: Tensor
    offsets: Tensor
    """(ranks + 1,): the ranges of each rank."""

    @property
    def ranks(self) -> int:
        return self.offsets.numel() - 1

    def of(self, rank: int) -> list[tuple[int, int]]:
        begin, end = self.offsets[rank : rank + 2].tolist()
        return list(
            zip(self.starts[begin:end].tolist(), self.ends[begin:end].tolist(), strict=True)
        )

    def sums(self, values: Tensor) -> Tensor:
        """Over the ranges of each rank."""
        before = torch.cat([values.new_zeros(1), values.cumsum(0)])
        return before[self.offsets[1:]] - before[self.offsets[:-1]]

    @property
    def rows(self) -> Tensor:
        """int64 (ranks,): how many each has."""
        return self.sums(self.ends - self.starts)

    def work(self, work: Work) -> Tensor:
        """float64 (ranks,): pairs of each."""
        return self.sums(work.before(self.ends) - work.before(self.starts))


def _ranges(bounds: Tensor, owners: Tensor, ranks: int) -> Ranges:
    """Of chunks [bounds[i], bounds[i + 1]) and who has them; neighbours of one rank become one."""
    starts, ends = bounds[:-1], bounds[1:]
    kept = ends > starts
    starts, ends, owners = starts[kept], ends[kept], owners[kept]
    order = torch.argsort(owners, stable=True)
    starts, ends, owners = starts[order], ends[order], owners[order]
    joins = torch.zeros(starts.numel() + 1, dtype=torch.bool)
    if starts.numel():
        joins[1:-1] = (owners[1:] == owners[:-1]) & (starts[1:] == ends[:-1])
    counts = torch.bincount(owners[~joins[:-1]], minlength=ranks)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Ranges(starts[~joins[:-1]], ends[~joins[1:]], offsets)


def contiguous(seqlen: int, ranks: int) -> Ranges:
    """One range each, of as many rows."""
    return _ranges(_even_bounds(seqlen, ranks), torch.arange(ranks), ranks)


def _even_bounds(seqlen: int, count: int) -> Tensor:
    """Whole blocks of 64 where that changes shares by less than 1%."""
    unit = BLOCK if seqlen >= 128 * BLOCK * count else 1
    return _bounds(seqlen, count, unit)


def _bounds(seqlen: int, count: int, unit: int) -> Tensor:
    """int64 (count + 1,) from 0 to seqlen, between them at multiples of `unit`."""
    steps = torch.arange(count + 1)
    bounds = ((2 * steps * seqlen + count * unit) // (2 * count * unit) * unit).clamp(max=seqlen)
    bounds[-1] = seqlen
    return bounds


# Zigzag: under a causal mask a row's work grows with its place, so that a part from the front and
# the one as far from the back are the same work together.


def zigzag(seqlen: int, ranks: int) -> Ranges:
    """Of 2 * ranks parts, the part r and the r-th from the end. As many rows each, or one or two
    more."""
    size, rest = divmod(seqlen, 2 * ranks)
    rank = torch.arange(ranks)
    if rest == 0 or size >= 128:
        bounds = _even_bounds(seqlen, 2 * ranks)
        return _ranges(bounds, torch.cat([rank, rank.flip(0)]), ranks)
    # A row is more than 1% of a part here. What is left over lies in the middle, where a row is the
    # mean work of all rows, or in front, where it is next to none.
    middle = rest
    if rest <= ranks // 2:
        middle = 0
    elif ranks < rest <= ranks + ranks // 2:
        middle = ranks
    front = size + (rank < rest - middle).long()
    lengths = torch.cat([front, torch.ones(middle, dtype=torch.int64), torch.full_like(rank, size)])
    row = torch.arange(middle)
    of_middle = torch.where(row < ranks, row, 2 * ranks - 1 - row)
    bounds = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return _ranges(bounds, torch.cat([rank, of_middle, rank.flip(0)]), ranks)


# Greedy: chunks by their counted work.


def greedy(work: Work, seqlen: int, ranks: int, chunk: int | None = None) -> Ranges:
    """Chunks of `chunk` rows; None: of CHUNK rows or fewer, as many on each rank, so that no chunk
    is more than an eighth of a rank's work and all ranks have as much. Where no even chunks do
    that, heavy ones are cut, and numbers of rows differ."""
    if chunk is not None:
        count = max(-(-seqlen // chunk), 1)
        bounds = (torch.arange(count + 1) * chunk).clamp(max=seqlen)
        return _best(work, [_in_rounds(work, bounds, ranks), _heaviest_first(work, bounds, ranks)])
    rows = seqlen / ranks
    unit = BLOCK if rows >= 128 * BLOCK else 2 ** max(int(rows / 128).bit_length() - 1, 0)
    per_rank = max(CHUNKS_PER_RANK, -(-seqlen // (ranks * CHUNK)))
    limit = work.total / (CHUNKS_PER_RANK * ranks)
    found = []
    while True:
        bounds = _bounds(seqlen, per_rank * ranks, unit)
        ranges = _in_rounds(work, bounds, ranks)
        heaviest = float(work.before(bounds).diff().max())
        found.append(ranges)
        if heaviest <= limit and _imbalance(ranges.work(work)) <= _FINE:
            return ranges
        per_rank *= 2
        if per_rank * ranks > _MOST_CHUNKS or per_rank * ranks * unit > seqlen:
            break
    bounds = _cut(work, _bounds(seqlen, CHUNKS_PER_RANK * ranks, unit), limit)
    return _best(work, [_heaviest_first(work, bounds, ranks), *found])


def _imbalance(work: Tensor) -> float:
    """Max / mean; 1 where there is no work."""
    mean = float(work.mean())
    return float(work.max()) / mean if mean > 0 else 1.0


def _best(work: Work, found: list[Ranges]) -> Ranges:
    """The first of those that are good enough, or else the most even."""
    imbalances = [_imbalance(ranges.work(work)) for ranges in found]
    fine = [i for i, x in enumerate(imbalances) if x <= _FINE]
    return found[fine[0] if fine else imbalances.index(min(imbalances))]


def _in_rounds(work: Work, bounds: Tensor, ranks: int) -> Ranges:
    """As many chunks each: of the heaviest that are left, one for each rank, the heaviest for the
    one with least."""
    weights = work.before(bounds).diff()
    padding = -weights.numel() % ranks
    weights = torch.cat([weights, weights.new_zeros(padding)])
    bounds = torch.cat([bounds, bounds[-1:].expand(padding)])
    owners = torch.empty(weights.numel(), dtype=torch.int64)
    loads = weights.new_zeros(ranks)
    for chunks in torch.argsort(weights, descending=True, stable=True).view(-1, ranks):
        lightest = torch.argsort(loads, stable=True)
        owners[chunks] = lightest
        loads[lightest] += weights[chunks]
    return _ranges(bounds, owners, ranks)


def _heaviest_first(work: Work, bounds: Tensor, ranks: int) -> Ranges:
    """Each chunk, the heaviest first, to the rank with least work; of equals, with fewest rows."""
    weights, lengths = work.before(bounds).diff().tolist(), bounds.diff().tolist()
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    loads = [(0.0, 0, rank) for rank in range(ranks)]
    owners = [0] * len(weights)
    for i in order:
        load, rows, rank = loads[0]
        owners[i] = rank
        heapq.heapreplace(loads, (load + weights[i], rows + lengths[i], rank))
    return _ranges(bounds, torch.tensor(owners, dtype=torch.int64), ranks)


def _cut(work: Work, bounds: Tensor, limit: float) -> Tensor:
    """The bounds, and more within chunks whose work is beyond the limit, until none is or they are
    of one row."""
    for _ in range(64):  # each halves chunks at least
        more = _cut_once(work, bounds, limit)
        if more.numel() == bounds.numel():
            break
        bounds = more
    return bounds


def _cut_once(work: Work, bounds: Tensor, limit: float) -> Tensor:
    weights, lengths = work.before(bounds).diff(), bounds.diff()
    pieces = (weights / max(limit, 1)).ceil().long().clamp(min=1)
    pieces = torch.minimum(pieces, lengths.clamp(min=1))
    chunk = torch.arange(pieces.numel()).repeat_interleave(pieces)
    first = torch.cat([pieces.new_zeros(1), pieces.cumsum(0)])
    piece = torch.arange(chunk.numel()) - first[chunk]
    starts = bounds[chunk] + piece * lengths[chunk] // pieces[chunk]
    return torch.cat([starts, bounds[-1:]])


def divided(ranges: Ranges, parts: int) -> Ranges:
    """The rows of each rank, in their order, divided among so many ranks; of rank r those of
    r * parts on."""
    if parts == 1:
        return ranges
    starts: list[int] = []
    ends: list[int] = []
    offsets = [0]
    rows = ranges.rows.tolist()
    cuts_of = {count: _even_bounds(count, parts).tolist() for count in set(rows)}
    for rank in range(ranges.ranks):
        own = ranges.of(rank)
        cuts = cuts_of[rows[rank]]
        for low, high in itertools.pairwise(cuts):
            before = 0
            for start, end in own:
                begin, stop = max(low - before, 0), min(high - before, end - start)
                if begin < stop:
                    starts.append(start + begin)
                    ends.append(start + stop)
                before += end - start
            offsets.append(len(starts))
    return Ranges(torch.tensor(starts), torch.tensor(ends), torch.tensor(offsets))
