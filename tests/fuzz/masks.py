"""Block masks of problems: random lists, over guarded memory."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from flash_attn2.masks import BlockMask

from .layout import short_repr
from .memory import guarded_copy


@dataclass(frozen=True)
class Mask:
    """What a block mask is like."""

    heads: str = ""  # one, kv or all; none: there is no mask
    per_sequence: bool = False
    empty: float = 0.0  # shares of blocks; others are partial
    full: float = 0.0
    lines: float = 0.0  # share of rows and of columns of blocks that are empty
    as_partial: float = 0.0  # share of full blocks that are listed as partial ones

    def __repr__(self) -> str:
        return short_repr(self)


NO_MASK = Mask()


def drawn_mask(draw: random.Random) -> Mask:
    empty = draw.choice((0.0, 0.3, 0.7, 0.95, 1.0))
    return Mask(
        heads=draw.choice(("one", "kv", "all")),
        per_sequence=draw.random() < 0.5,
        empty=empty,
        full=draw.choice((0.0, 0.5, 1.0)) * (1 - empty),
        lines=draw.choice((0.0, 0.1, 0.5)),
        as_partial=draw.choice((0.0, 0.5, 1.0)),
    )


@dataclass(frozen=True)
class MaskSpec:
    """A block mask, before there is memory for it."""

    size: tuple[int, int, int, int]  # batch or 1, heads, seqlen_q, seqlen_k
    mask: Mask
    seed: int

    @property
    def arguments(self) -> tuple[object, ...]:
        """Those of `random_block_mask`."""
        mask = self.mask
        return self.size, mask.empty, mask.full, mask.lines, mask.as_partial, self.seed

    def build(self, behind: bool) -> BlockMask:
        _, _, seqlen_q, seqlen_k = self.size
        made = random_block_mask(*self.arguments)  # type: ignore[arg-type]
        return BlockMask(seqlen_q, seqlen_k, *(guarded_copy(x, behind) for x in tensors_of(made)))


def tensors_of(mask: BlockMask) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return mask.row_offsets, mask.cols, mask.tiles, mask.bits


def random_block_mask(
    size: tuple[int, int, int, int],
    empty: float,
    full: float,
    lines: float,
    as_partial: float,
    seed: int,
) -> BlockMask:
    torch.manual_seed(seed)
    batch, heads, seqlen_q, seqlen_k = size
    rows, cols = -(-seqlen_q // 64), -(-seqlen_k // 64)
    kind = torch.rand(batch, heads, rows, cols)
    kind[..., torch.rand(rows) < lines, :] = -1.0
    kind[..., torch.rand(cols) < lines] = -1.0
    kind = kind.repeat_interleave(64, 2).repeat_interleave(64, 3)[..., :seqlen_q, :seqlen_k]
    some = torch.rand(batch, heads, seqlen_q, seqlen_k) < torch.rand(seqlen_q, 1)
    mask = BlockMask.from_dense((kind >= empty) & ((kind < empty + full) | some))
    bits = torch.cat([mask.bits, torch.full((1, 64), -1)])
    partial = torch.rand(mask.tiles.shape) < as_partial
    tiles = torch.where((mask.tiles == 0) & partial, len(bits) - 1, mask.tiles).int()
    return BlockMask(seqlen_q, seqlen_k, mask.row_offsets, mask.cols, tiles, bits)
