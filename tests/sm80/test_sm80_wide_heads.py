"""Heads of more than 256 columns in the emulator: the forward and split kernels, which column warps
share in other ways than those of narrower heads."""

from __future__ import annotations

import pytest
import torch
from cache_cases import CacheCase, check_kvcache
from cases import Case, Packed
from support import Target, check_dense, check_varlen, emulator_options
from test_sm80_block_mask import OPTIONS, drawn_mask
from test_sm80_kernels import MMA_FLOP, SECTOR_BYTES, VARIANTS, counted
from test_sm80_split import counted as counted_decoding
from test_sm80_widths import DEVICES, NAME, TARGET, assert_no_conflicts, options_of

from flash_attn2 import flash_attn_func, flash_attn_with_kvcache

# Whole, and parts of the columns of either side.
WIDTHS = pytest.mark.parametrize(("head_dim", "head_dim_v"), [(512, 512), (320, 264), (72, 496)])

pytestmark = pytest.mark.usefixtures("emulated")


@DEVICES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kernel(device: str, variant: str, dtype: torch.dtype) -> None:
    """With several CTAs at once, under a random schedule and random copy completion."""
    case = Case(512, 1, 77, 150, num_heads=2, num_heads_kv=1)
    with emulator_options(f"device={device},ctas=3,async=random,seed=1"):
        check_dense(*case.qkv(Target(NAME, dtype)), **options_of(variant))


@DEVICES
@WIDTHS
@pytest.mark.parametrize("causal", [False, True])
def test_widths(device: str, head_dim: int, head_dim_v: int, causal: bool) -> None:
    case = Case(head_dim, 1, 40, 100, num_heads=2, num_heads_kv=1, head_dim_v=head_dim_v)
    with emulator_options(f"device={device}"):
        check_dense(*case.qkv(TARGET), causal=causal)


@pytest.mark.parametrize("heads", [(8, 4), (16, 1), (32, 4)], ids=str)
def test_groups_of_gemma(heads: tuple[int, int]) -> None:
    """With sequences of several lengths, in a window and in all that they have."""
    case = Packed((33, 0, 5), (33, 7, 40), head_dim=512, num_heads=heads[0], num_heads_kv=heads[1])
    for options in ({"causal": True}, {"window_size": (20, 0)}):
        check_varlen(*case.qkv(TARGET), case.packing("cpu"), **options)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_listed_kernel(name: str) -> None:
    q, k, v = Case(512, 1, 134, 150, num_heads=2, num_heads_kv=1).qkv(TARGET)
    with emulator_options("device=sm80,ctas=3,async=random,seed=3"):
        check_dense(q, k, v, **OPTIONS[name], block_mask=drawn_mask(134, 150, 2))


def test_block_masks_need_more_shared_memory() -> None:
    q, k, v = Case(512, 1, 64, 64, num_heads=1, num_heads_kv=1).qkv(TARGET)
    message = "block masks of heads of more than 256 columns need 160 KiB .* the device has 99"
    with emulator_options("device=sm86"), pytest.raises(RuntimeError, match=message):
        flash_attn_func(q, k, v, block_mask=drawn_mask(64, 64))


def test_biases() -> None:
    q, k, v = Case(512, 1, 40, 70, num_heads=2, num_heads_kv=1).qkv(TARGET)
    check_dense(q, k, v, bias=torch.randn(1, 2, 40, 70), relative_bias=torch.randn(2, 109))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("modifier", [None, "alibi"])
@pytest.mark.parametrize("seqlen_q", [2, 21], ids=["few", "many"])
@WIDTHS
def test_every_split_kernel(
    head_dim: int, head_dim_v: int, seqlen_q: int, modifier: str | None, dtype: torch.dtype
) -> None:
    """With an append, heads turned, and as little shared memory as any device has."""
    case = CacheCase(
        head_dim,
        head_dim_v=head_dim_v,
        heads=(8, 4),
        seqlen_q=seqlen_q,
        page_size=48,
        mask="window",
        modifier=modifier,
        leftpad=True,
        new="neox",
        num_splits=2,
    )
    with emulator_options("device=sm86,ctas=3,async=random,seed=4"):
        check_kvcache(**case.arguments(Target(NAME, dtype)))


@pytest.mark.parametrize("heads", [(8, 4), (16, 1), (32, 4)], ids=str)
@pytest.mark.parametrize("num_splits", [0, 1, 3])
def test_decoding(heads: tuple[int, int], num_splits: int) -> None:
    """Splits that are chosen, whose results a CTA adds up or stores."""
    case = CacheCase(512, heads=heads, seqlen_q=1, modifier="sink", num_splits=num_splits)
    check_kvcache(**case.arguments(TARGET))


@pytest.mark.parametrize("heads", [2, 32])
def test_few_rows_do_not_depend_on_company(heads: int) -> None:
    """However many CTAs share the splits of a sequence."""
    q = TARGET.tensor(4, 1, heads, 512)
    k, v = (TARGET.tensor(4, 300, 2, 512) for _ in "kv")
    together = flash_attn_with_kvcache(q, k, v, cache_seqlens=300)
    alone = flash_attn_with_kvcache(q[1:2], k[1:2], v[1:2], cache_seqlens=300)
    assert torch.equal(together[1:2], alone)


def test_forward_cost_is_the_least_possible() -> None:
    seqlen, heads = 128, 2  # whole tiles
    q, k, v = Case(512, 1, seqlen, seqlen, heads, 1).qkv(TARGET)
    cost = counted(q, k, v)
    assert cost["mma"] * MMA_FLOP == heads * seqlen * seqlen * 2 * 512
    assert_no_conflicts(cost)
    blocks = cost["ctas"] / heads
    assert cost["read.bytes"] == q.nbytes + heads * blocks * (k.nbytes + v.nbytes)
    assert cost["write.out.sectors"] * SECTOR_BYTES == q.nbytes


def test_decoding_reads_the_cache_once() -> None:
    q = TARGET.tensor(1, 1, 16, 512)
    k, v = (TARGET.tensor(1, 256, 1, 512) for _ in "kv")
    cost = counted_decoding(q, k, v, cache_seqlens=256)["SplitKernel"]
    assert cost["read.k.bytes"] == k.nbytes
    assert cost["read.v.bytes"] == v.nbytes
