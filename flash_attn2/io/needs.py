"""The least that attention under a block mask takes: what its lists name, and no more."""

from __future__ import annotations

from dataclasses import dataclass

from flash_attn2._impl.problem import BLOCK
from flash_attn2.io.counts import MMA_FLOP
from flash_attn2.io.lists import TILE_BYTES, rows_of
from flash_attn2.io.pieces import forward_ctas
from flash_attn2.io.plans import forward_plan
from flash_attn2.io.problem import ELEMENT_BYTES, Attention
from flash_attn2.masks import BlockMask

_ENTRY_BYTES = 16


@dataclass(frozen=True)
class Needs:
    forward_bytes: int
    """Q, O, lse, K and V of the blocks that CTAs go through, and for each of these 16 bytes and the
    bits of what it shows in part."""
    forward_mma: int
    """Of the listed blocks of 64 x 64 pairs."""
    backward_mma: int


def needs_of(problem: Attention, mask: BlockMask) -> Needs:
    tile = forward_plan(problem, mask).tile
    steps = [
        step for cta in forward_ctas(rows_of(mask), tile.block_m // BLOCK) for step in cta.steps
    ]
    row_bytes = (problem.head_dim + problem.width_v) * ELEMENT_BYTES
    keys = sum(min(BLOCK, problem.seqlen - step.block * BLOCK) for step in steps)
    listed = keys * row_bytes + len(steps) * _ENTRY_BYTES
    listed += sum(step.partial for step in steps) * TILE_BYTES
    column = problem.pairs * mask.cols.numel() * 2 * BLOCK**2
    of_keys, of_values = (column * d // MMA_FLOP for d in (tile.head_dim, tile.head_dim_v))
    return Needs(
        forward_bytes=problem.key_bytes
        + problem.value_bytes
        + problem.lse_bytes
        + problem.pairs * listed,
        forward_mma=of_keys + of_values,
        backward_mma=3 * of_keys + 2 * of_values,
    )
