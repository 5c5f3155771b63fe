"""Lists of blocks: into canonical form and to dense masks, by torch on any device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flash_attn2._impl.problem import BLOCK
from flash_attn2.masks.words import ALL, count_bits, edge, inside, num_blocks, unpack

_AT_ONCE = 1024  # blocks, of a few MB


class Lists(NamedTuple):
    """The tensors of a BlockMask, which says what they hold."""

    row_offsets: Tensor
    cols: Tensor
    tiles: Tensor
    bits: Tensor


NAMES = Lists._fields


def rows_of_entries(lists: Lists) -> Tensor:
    """int64 (entries,): the row of each entry, counted through all batches and heads."""
    counts = lists.row_offsets.diff(dim=-1).flatten()
    rows = torch.arange(counts.numel(), device=counts.device)
    return rows.repeat_interleave(counts, output_size=lists.cols.numel())


def edges_of_entries(lists: Lists, seqlen_q: int, seqlen_k: int) -> Tensor:
    rows = rows_of_entries(lists) % max(num_blocks(seqlen_q), 1)
    return edge(rows, lists.cols, seqlen_q, seqlen_k)


def count_pairs(lists: Lists, seqlen_q: int, seqlen_k: int) -> int:
    """Visible pairs inside the lengths, over all lists."""
    which = edges_of_entries(lists, seqlen_q, seqlen_k)
    limits = inside(seqlen_q, seqlen_k, lists.bits.device)
    counts = torch.stack([count_bits(lists.bits & limit).sum(-1) for limit in limits])
    return int(counts[which, lists.tiles.long()].sum())


def canonical(lists: Lists, seqlen_q: int, seqlen_k: int) -> Lists:
    """The same pairs: no bit outside the lengths, no empty block, full ones as such, every tile
    once and in the order of first use."""
    which = edges_of_entries(lists, seqlen_q, seqlen_k)
    used, entry = torch.unique(which * lists.bits.shape[0] + lists.tiles, return_inverse=True)
    limits = inside(seqlen_q, seqlen_k, lists.bits.device)
    edges, tiles = used // lists.bits.shape[0], used % lists.bits.shape[0]
    words = lists.bits[tiles] & limits[edges]
    kept = (words != 0).any(-1)[entry]
    rows = rows_of_entries(lists)[kept]
    shape = (*lists.row_offsets.shape[:2], num_blocks(seqlen_q))
    return _gathered(shape, rows, lists.cols[kept], entry[kept], words, limits[edges])


def to_dense(lists: Lists, seqlen_q: int, seqlen_k: int) -> Tensor:
    """bool (batch, heads, seqlen_q, seqlen_k)."""
    batch, heads, _ = lists.row_offsets.shape
    rows, cols = num_blocks(seqlen_q), num_blocks(seqlen_k)
    blocks = lists.bits.new_zeros((batch * heads * rows, BLOCK, cols, BLOCK), dtype=torch.bool)
    row, col = rows_of_entries(lists), lists.cols.long()
    for begin in range(0, col.numel(), _AT_ONCE):
        some = slice(begin, begin + _AT_ONCE)
        blocks[row[some], :, col[some]] = unpack(lists.bits[lists.tiles[some]])
    dense = blocks.view(batch, heads, rows * BLOCK, cols * BLOCK)
    return dense[:, :, :seqlen_q, :seqlen_k].contiguous()


def _gathered(
    shape: tuple[int, int, int],
    rows: Tensor,
    cols: Tensor,
    entry: Tensor,
    words: Tensor,
    limits: Tensor,
) -> Lists:
    """Entries at (row, col), none of them empty, with words[entry], whose full ones are limits."""
    full = (words == limits).all(-1)[entry]
    partial = entry[~full]
    used, of_entry = torch.unique(partial, return_inverse=True)
    unique, of_used = torch.unique(words[used], dim=0, return_inverse=True)
    tile = of_used[of_entry]
    number, order = _by_first_use(tile, unique.shape[0])
    tiles = torch.zeros_like(cols, dtype=torch.int32)
    tiles[~full] = (number[tile] + 1).int()
    ones = words.new_full((1, BLOCK), ALL)
    counts = torch.bincount(rows, minlength=shape[0] * shape[1] * shape[2])
    return Lists(_offsets(counts, shape), cols.int(), tiles, torch.cat([ones, unique[order]]))


def _by_first_use(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of values 0..count-1, the number of each in the order of first use, and that order."""
    places = torch.arange(values.numel(), device=values.device)
    first = torch.full((count,), values.numel(), device=values.device)
    first = first.scatter_reduce(0, values, places, "amin")
    order = first.argsort()
    number = torch.empty_like(order)
    number[order] = torch.arange(count, device=values.device)
    return number, order


def _offsets(counts: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """row_offsets of rows with so many entries: a list begins where the one before ends."""
    batch, heads, rows = shape
    ends = counts.cumsum(0).view(batch, heads, rows)
    before = counts.view(batch * heads, rows).sum(-1).cumsum(0).roll(1)
    before[0] = 0
    return torch.cat([before.view(batch, heads, 1), ends], -1)
