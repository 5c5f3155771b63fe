"""What the sm90 kernels move and multiply, beside the least that is possible."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import HALF, Target, targets

from flash_attn2 import flash_attn_func
from flash_attn2._impl import backends

FLOAT16 = [Target("sm90-emulated", HALF[0])]
SECTOR_BYTES = 32
MMA_PRODUCTS = 16 * 8 * 16
# Rows and keys of a tile, by bucket (csrc/sm90/tiles.h), and at 128 under windows.
TILES = {64: (192, 128), 96: (128, 176), 128: (128, 176), 192: (128, 112), 256: (128, 80)}
SHORT_STEPS = (128, 128)


def counted(*tensors: torch.Tensor, **options: Any) -> dict[str, float]:
    """What one call costs."""
    module: Any = backends.load("sm90-emulated").module
    module.reset_counters()
    flash_attn_func(*tensors, **options)
    return dict(module.counters())


@targets(FLOAT16)
@pytest.mark.parametrize("bucket", TILES)
def test_cost_is_the_least_possible(bucket: int, target: Target) -> None:
    block_m, block_n = TILES[bucket]
    heads, seqlen_q, seqlen_k = 2, 192, 2 * block_n
    q = target.tensor(1, seqlen_q, heads, bucket)
    k, v = (target.tensor(1, seqlen_k, 1, bucket) for _ in range(2))
    cost = counted(q, k, v)

    assert cost["mma"] * MMA_PRODUCTS == 2 * heads * seqlen_q * seqlen_k * bucket
    for name, tensor in {"q": q, "k": k, "v": v}.items():
        assert cost[f"read.{name}.distinct_sectors"] * SECTOR_BYTES == tensor.nbytes
    assert cost["read.q.sectors"] * SECTOR_BYTES == q.nbytes
    assert cost["write.out.sectors"] * SECTOR_BYTES == q.nbytes
    assert cost["write.lse.bytes"] == heads * seqlen_q * 4
    # Nothing but the inputs, and K and V once for each tile of rows.
    tiles = heads * seqlen_q / block_m
    assert cost["ctas"] == tiles
    assert cost["read.bytes"] == q.nbytes + tiles * (k.nbytes + v.nbytes)


@targets(FLOAT16)
@pytest.mark.parametrize(
    ("options", "visible_tiles"),
    [
        # Two blocks of 128 queries against tiles of 128 keys.
        ({"causal": True}, 1 + 2),
        ({"window_size": (64, 0)}, 1 + 2),
        ({"window_size": (0, 0)}, 1 + 1),
        ({"window_size": (-1, 64)}, 2 + 2),
    ],
    ids=str,
)
def test_hidden_tiles_are_skipped(
    options: dict[str, Any], visible_tiles: int, target: Target
) -> None:
    block_m, block_n = SHORT_STEPS
    q, k, v = (target.tensor(1, 256, 1, 128) for _ in range(3))
    cost = counted(q, k, v, **options)
    assert cost["mma"] * MMA_PRODUCTS == visible_tiles * 2 * block_m * block_n * 128
    assert cost["read.k.bytes"] == visible_tiles * block_n * 128 * 2


@targets(FLOAT16)
def test_narrow_heads_read_only_their_columns(target: Target) -> None:
    q, k, v = (target.tensor(1, 128, 1, 104) for _ in range(3))
    cost = counted(q, k, v)
    assert cost["read.bytes"] == q.nbytes + k.nbytes + v.nbytes
    assert cost["write.out.bytes"] == q.nbytes
