"""Blocks of 64 x 64 pairs as 64 words: word i is query row i, bit j of it key j."""

from __future__ import annotations

import torch
from torch import Tensor

from flash_attn2._impl.problem import BLOCK

ALL = -1
"""A word whose bits are all set."""

# Gathers the lowest bits of 8 bytes in the highest byte: no two of its products meet.
_GATHER = 0x0102040810204080


def num_blocks(seqlen: int) -> int:
    """Blocks of so many rows, the last of which may be cut short."""
    return -(-seqlen // BLOCK)


def pack(pairs: Tensor) -> Tensor:
    """bool (..., 64, 64) -> int64 (..., 64)."""
    eights = pairs.contiguous().view(torch.int64)  # of 8 bytes, each 0 or 1
    return ((eights * _GATHER) >> 56).to(torch.uint8).view(torch.int64).squeeze(-1)


def unpack(words: Tensor) -> Tensor:
    """int64 (..., 64) -> bool (..., 64, 64)."""
    octets = words.contiguous().unsqueeze(-1).view(torch.uint8)
    places = torch.arange(8, dtype=torch.uint8, device=words.device)
    return ((octets.unsqueeze(-1) >> places) & 1).bool().flatten(-2)


def count_bits(words: Tensor) -> Tensor:
    """Bits that are set in each of int64 words, whose sums of 2, 4 and 8 bits are made in place."""
    x = words - ((words >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (x * 0x0101010101010101) >> 56


def inside(seqlen_q: int, seqlen_k: int, device: torch.device) -> Tensor:
    """int64 (4, 64): the pairs of a block that lie inside the lengths. It is `edge` that says which
    of the four: of an ordinary block, of the last one of a row, of a column, of both."""
    rows = torch.arange(BLOCK, device=device) < _rows_of_last(seqlen_q)
    cols = _rows_of_last(seqlen_k)
    word = ALL if cols == BLOCK else (1 << cols) - 1
    last_rows = rows.long().neg()
    whole = torch.full_like(last_rows, ALL)
    return torch.stack([whole, whole & word, last_rows, last_rows & word])


def edge(rows: Tensor, cols: Tensor, seqlen_q: int, seqlen_k: int) -> Tensor:
    """Which of `inside` holds for blocks (row, col)."""
    last_row, last_col = num_blocks(seqlen_q) - 1, num_blocks(seqlen_k) - 1
    return 2 * (rows == last_row).long() + (cols == last_col).long()


def _rows_of_last(seqlen: int) -> int:
    return seqlen - (num_blocks(seqlen) - 1) * BLOCK
