"""The sm80 backward kernels in the emulator: every variant that is built, and what each costs.

The emulator counts exactly, so costs are compared with the least that is possible.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import BUCKETS, Case, Packed
from support import (
    Target,
    check_dense_gradients,
    check_varlen_gradients,
    cumulative,
    emulator_options,
)
from test_sm80_kernels import MMA_FLOP, SECTOR_BYTES, VARIANTS, qkv
from torch import Tensor

from flash_attn2 import flash_attn_func
from flash_attn2._impl import backends
from flash_attn2.reference import Packing

pytestmark = pytest.mark.usefixtures("emulated")


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("device", "head_dim"),
    [*(("sm80", d) for d in BUCKETS), *(("sm86", d) for d in BUCKETS if d > 96)],
)
def test_every_kernel(device: str, head_dim: int, variant: str, deterministic: bool) -> None:
    """With several CTAs at once, under a random schedule and random copy completion.

    Where the result must be reproducible, any order of summation left to chance is an error.
    """
    target = Target("sm80-emulated", torch.bfloat16 if deterministic else torch.float16)
    case = VARIANTS[variant]
    q, k, v = Case(head_dim, batch=1, seqlen_q=134, seqlen_k=150, num_heads=2).qkv(target)
    options = case.options | {"deterministic": deterministic}
    if case.alibi:
        options["alibi_slopes"] = torch.tensor([[0.3, 0.1]])
    if case.sink:
        options["sink"] = torch.tensor([1.0, -2.0])
    sums = "ordered" if deterministic else "free"
    with emulator_options(f"device={device},ctas=3,async=random,seed={head_dim},sums={sums}"):
        check_dense_gradients(q, k[:, :, :1], v[:, :, :1], **options)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("options", [{"causal": True}, {"window_size": (600, 5)}], ids=str)
def test_the_larger_tile_of_96(options: dict[str, Any], deterministic: bool) -> None:
    """Under a mask, which packed sequences take it for, whose lengths the host does not know."""
    target = Target("sm80-emulated", torch.float16 if deterministic else torch.bfloat16)
    q, k, v = Case(96, batch=1, seqlen_q=155, seqlen_k=290, num_heads=2).qkv(target)
    packing = Packing(cumulative(15, 0, 140), cumulative(150, 3, 137), None, 140, 150)
    sums = "ordered" if deterministic else "free"
    with emulator_options(f"device=sm80,ctas=3,async=random,seed=96,sums={sums}"):
        check_varlen_gradients(
            q[0], k[0, :, :1], v[0, :, :1], packing, deterministic=deterministic, **options
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_queries_past_the_end_of_shorter_sequences(dtype: torch.dtype) -> None:
    """Of which there are tiles in the launch, but none in the workspace."""
    case = Packed((150, 10), (90, 70))
    target = Target("sm80-emulated", dtype)
    check_varlen_gradients(*case.qkv(target), case.packing(target.device))


def counted(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> dict[str, float]:
    """What the backward pass of one call costs."""
    module = backends.load("sm80-emulated").module
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = flash_attn_func(*leaves, **options)
    grad_out = torch.randn_like(out)
    module.reset_counters()
    torch.autograd.grad(out, leaves, grad_out)
    return module.counters()


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("head_dim", BUCKETS)
def test_cost_is_the_least_possible(head_dim: int, deterministic: bool) -> None:
    block_keys = {192: 96, 256: 64}.get(head_dim, 128)
    seqlen, heads = (384 if head_dim == 192 else 256), 2  # whole tiles
    q, k, v = qkv(seqlen, seqlen, heads, 1, head_dim)
    cost = counted(q, k, v, deterministic=deterministic)
    sums = 4 * q.numel()  # float32

    assert cost["mma"] * MMA_FLOP == 5 * heads * seqlen * seqlen * head_dim
    for unit in ("ldmatrix", "cp_async", "shared_loads", "shared_stores"):
        assert cost[f"{unit}.wavefronts"] == cost[f"{unit}.ideal_wavefronts"], unit
    # Keys and values once, for all heads of the group.
    assert cost["read.k.sectors"] * SECTOR_BYTES == k.nbytes
    assert cost["read.v.sectors"] * SECTOR_BYTES == v.nbytes
    # Queries and gradients of the output once for each block of keys.
    blocks = cost["read.q.bytes"] / q.nbytes
    assert blocks == seqlen // block_keys
    assert cost["read.grad_out.bytes"] == (blocks + 1) * q.nbytes
    assert cost["read.out.sectors"] * SECTOR_BYTES == q.nbytes
    # Gradients once, in whole sectors.
    for name, tensor in {"grad_q": q, "grad_k": k, "grad_v": v}.items():
        assert cost[f"write.{name}.sectors"] * SECTOR_BYTES == tensor.nbytes
    # The float32 sums of dQ are cleared, added to by each block of keys, and read; two numbers for
    # each row are written, and read by each block. A fixed order takes a semaphore for each tile.
    rows = seqlen * heads
    order = (
        cost["atomic.workspace.bytes"] - blocks * sums,
        cost["write.workspace.bytes"] - sums - 8 * rows,
        cost["read.workspace.bytes"] - sums - blocks * 8 * rows,
    )
    assert max(order) <= (2 * 4 * blocks * rows / 32 if deterministic else 0)
    assert cost["atomic.workspace.sectors"] * SECTOR_BYTES <= (blocks + 0.02) * sums


@pytest.mark.parametrize(
    ("options", "visible_tiles"),
    [
        # Two blocks of 128 keys against tiles of 64 queries.
        ({"causal": True}, 4 + 2),
        ({"window_size": (64, 0)}, 3 + 2),
        ({"window_size": (0, 0)}, 2 + 2),
        ({"window_size": (-1, 64)}, 4 + 3),
    ],
    ids=str,
)
def test_hidden_tiles_are_skipped(options: dict[str, Any], visible_tiles: int) -> None:
    q, k, v = qkv(256, 256, 1, 1, 64)
    cost = counted(q, k, v, **options)
    assert cost["mma"] * MMA_FLOP == visible_tiles * 5 * 128 * 64 * 64
    assert cost["read.q.bytes"] == visible_tiles * 64 * 64 * 2


@pytest.mark.parametrize(
    ("seqlen", "blocks"),
    [
        (256, 4 + 3 + 2 + 1),  # of 64 queries and 64 keys
        (576, 2 * (9 + 7 + 5 + 3 + 1)),  # keys of a CTA are 128, then
    ],
)
def test_few_keys_in_sight_take_the_smaller_tile_of_96(seqlen: int, blocks: int) -> None:
    q, k, v = qkv(seqlen, seqlen, 1, 1, 96)
    cost = counted(q, k, v, causal=True)
    assert cost["mma"] * MMA_FLOP == blocks * 5 * 64 * 64 * 96


def test_narrow_heads_read_only_their_columns() -> None:
    q, k, v = qkv(128, 128, 1, 1, 40)
    cost = counted(q, k, v)
    for name in ("q", "k", "v", "out"):
        assert cost[f"read.{name}.bytes"] == q.nbytes
    for name in ("grad_q", "grad_k", "grad_v"):
        assert cost[f"write.{name}.bytes"] == q.nbytes
