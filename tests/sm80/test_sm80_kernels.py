"""The sm80 kernels in the emulator: every variant that is built, and what each of them costs.

The emulator counts exactly, so costs are compared with the least that is possible.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import BUCKETS, Case
from support import Target, check_dense, emulator_options

from flash_attn2 import flash_attn_func
from flash_attn2._impl import backends

SECTOR_BYTES = 32
MMA_FLOP = 16 * 8 * 16

VARIANTS: dict[str, Case] = {
    "plain": Case(options={"causal": True}),
    "modified": Case(alibi="batch", sink=True, options={"softcap": 3.0, "window_size": (70, 5)}),
    "dropout": Case(alibi="heads", options={"dropout_p": 0.3, "window_size": (90, -1)}),
}

pytestmark = pytest.mark.usefixtures("emulated")


def counted(*tensors: torch.Tensor, **options: Any) -> dict[str, float]:
    """What one call costs."""
    module = backends.load("sm80-emulated").module
    module.reset_counters()
    flash_attn_func(*tensors, **options)
    return module.counters()


def qkv(seqlen_q: int, seqlen_k: int, heads: int, heads_kv: int, head_dim: int) -> Any:
    target = Target("sm80-emulated", torch.float16)
    kv = (1, seqlen_k, heads_kv, head_dim)
    return target.tensor(1, seqlen_q, heads, head_dim), target.tensor(*kv), target.tensor(*kv)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("device", "head_dim"),
    [*(("sm80", d) for d in BUCKETS), *(("sm86", d) for d in BUCKETS if d > 128)],
)
def test_every_kernel(device: str, head_dim: int, variant: str, dtype: torch.dtype) -> None:
    """With several CTAs at once, under a random schedule and random copy completion."""
    target = Target("sm80-emulated", dtype)
    case = VARIANTS[variant]
    q, k, v = Case(head_dim, batch=1, seqlen_q=205, seqlen_k=230, num_heads=2).qkv(target)
    options = case.options
    if case.alibi:
        options = options | {"alibi_slopes": torch.tensor([[0.3, 0.1]])}
    if case.sink:
        options = options | {"sink": torch.tensor([1.0, -2.0])}
    with emulator_options(f"device={device},ctas=3,async=random,seed={head_dim}"):
        check_dense(q, k[:, :, :1], v[:, :, :1], **options)


@pytest.mark.parametrize("head_dim", BUCKETS)
def test_cost_is_the_least_possible(head_dim: int) -> None:
    seqlen = 384  # whole tiles of every kernel
    q, k, v = qkv(seqlen, seqlen, 2, 1, head_dim)
    cost = counted(q, k, v)

    assert cost["mma"] * MMA_FLOP == 2 * 2 * seqlen * seqlen * head_dim
    for unit in ("ldmatrix", "cp_async", "shared_loads", "shared_stores"):
        assert cost[f"{unit}.wavefronts"] == cost[f"{unit}.ideal_wavefronts"], unit
    for name, tensor in {"q": q, "k": k, "v": v}.items():
        assert cost[f"read.{name}.distinct_sectors"] * SECTOR_BYTES == tensor.nbytes
    assert cost["read.q.sectors"] * SECTOR_BYTES == q.nbytes
    assert cost["write.out.sectors"] * SECTOR_BYTES == q.nbytes
    assert cost["write.lse.sectors"] * SECTOR_BYTES == 2 * seqlen * 4
    # Nothing but the inputs, and K and V once for each block of queries.
    blocks = cost["ctas"] / 2
    assert cost["read.bytes"] == q.nbytes + 2 * blocks * (k.nbytes + v.nbytes)


@pytest.mark.parametrize(
    ("options", "visible_tiles"),
    [
        # Two blocks of 128 queries against tiles of 64 keys.
        ({"causal": True}, 2 + 4),
        ({"window_size": (64, 0)}, 2 + 3),
        ({"window_size": (0, 0)}, 2 + 2),
        ({"window_size": (-1, 64)}, 3 + 4),
    ],
    ids=str,
)
def test_hidden_tiles_are_skipped(options: dict[str, Any], visible_tiles: int) -> None:
    q, k, v = qkv(256, 256, 1, 1, 64)
    cost = counted(q, k, v, **options)
    assert cost["mma"] * MMA_FLOP == visible_tiles * 2 * 128 * 64 * 64
    assert cost["read.k.bytes"] == visible_tiles * 64 * 64 * 2


def test_narrow_heads_read_only_their_columns() -> None:
    q, k, v = qkv(128, 128, 1, 1, 40)
    cost = counted(q, k, v)
    assert cost["read.bytes"] == q.nbytes + k.nbytes + v.nbytes
    assert cost["write.out.bytes"] == q.nbytes
