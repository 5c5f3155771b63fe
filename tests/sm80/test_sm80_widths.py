"""Kernels for values of another width than keys, in the emulator: those of 192 and 128 columns, and
narrower heads in all kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cache_cases import CacheCase, check_kvcache
from cases import Case
from support import (
    Target,
    check_dense,
    check_dense_gradients,
    emulator_options,
)
from test_sm80_block_mask import OPTIONS, drawn_mask
from test_sm80_kernels import MMA_FLOP, SECTOR_BYTES, VARIANTS, counted
from torch import Tensor

from flash_attn2 import flash_attn_func, flash_attn_with_kvcache
from flash_attn2._impl import backends
from flash_attn2.masks import BlockMask

NAME = "sm80-emulated"
TARGET = Target(NAME, torch.bfloat16)
DEVICES = pytest.mark.parametrize("device", ["sm80", "sm86"])
# Whole buckets, parts of a pair's, and parts of those with equal widths.
WIDTHS = pytest.mark.parametrize(
    ("head_dim", "head_dim_v"), [(192, 128), (136, 72), (150, 1), (24, 32), (32, 8), (13, 5)]
)

pytestmark = pytest.mark.usefixtures("emulated")


def options_of(variant: str) -> dict[str, Any]:
    case = VARIANTS[variant]
    options = dict(case.options)
    if case.alibi:
        options["alibi_slopes"] = torch.tensor([[0.3, 0.1]])
    if case.sink:
        options["sink"] = torch.tensor([1.0, -2.0])
    return options


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_forward_kernel(variant: str, dtype: torch.dtype) -> None:
    """With several CTAs at once, under a random schedule, and as little shared memory as any device
    has."""
    case = Case(192, 1, 205, 230, num_heads=2, num_heads_kv=1, head_dim_v=128)
    with emulator_options("device=sm86,ctas=3,async=random,seed=1"):
        check_dense(*case.qkv(Target(NAME, dtype)), **options_of(variant))


@pytest.mark.parametrize("window", [(190, 20), (-1, 20)], ids=str)
@pytest.mark.parametrize(("head_dim", "head_dim_v"), [(128, 72), (40, 104), (128, 128)])
def test_scores_ahead(head_dim: int, head_dim_v: int, window: tuple[int, int]) -> None:
    """The plain kernel of 128 columns, with and without masked tiles behind the full ones."""
    case = Case(head_dim, 1, 205, 330, num_heads=2, num_heads_kv=1, head_dim_v=head_dim_v)
    with emulator_options("device=sm86,ctas=3,async=random,seed=4"):
        check_dense(*case.qkv(TARGET), window_size=window)


@DEVICES
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_backward_kernel(device: str, variant: str, deterministic: bool) -> None:
    """Where the result must be reproducible, any order of sums left to chance is an error."""
    target = Target(NAME, torch.bfloat16 if deterministic else torch.float16)
    case = Case(192, 1, 134, 150, num_heads=2, num_heads_kv=1, head_dim_v=128)
    options = options_of(variant) | {"deterministic": deterministic}
    sums = "ordered" if deterministic else "free"
    with emulator_options(f"device={device},ctas=3,async=random,seed=2,sums={sums}"):
        check_dense_gradients(*case.qkv(target), **options)


@DEVICES
@pytest.mark.parametrize("name", OPTIONS)
def test_every_listed_kernel(device: str, name: str) -> None:
    case = Case(192, 1, 134, 150, num_heads=2, num_heads_kv=1, head_dim_v=128)
    q, k, v = case.qkv(TARGET)
    options = OPTIONS[name] | {"block_mask": drawn_mask(134, 150, 2)}
    with emulator_options(f"device={device},ctas=3,async=random,seed=3"):
        check_dense(q, k, v, **options)
        check_dense_gradients(q, k, v, **options)


@pytest.mark.parametrize("modifier", [None, "alibi"])
@pytest.mark.parametrize("seqlen_q", [2, 50], ids=["few", "many"])
@pytest.mark.parametrize(("head_dim", "head_dim_v"), [(192, 128), (136, 40), (16, 32)])
def test_every_split_kernel(
    head_dim: int, head_dim_v: int, seqlen_q: int, modifier: str | None
) -> None:
    """With an append, and heads turned."""
    case = CacheCase(
        head_dim,
        head_dim_v=head_dim_v,
        seqlen_q=seqlen_q,
        page_size=48,
        mask="window",
        modifier=modifier,
        new="neox",
        num_splits=2,
    )
    with emulator_options("device=sm86,ctas=3,async=random,seed=4"):
        check_kvcache(**case.arguments(TARGET))


@WIDTHS
@pytest.mark.parametrize("causal", [False, True])
def test_widths(head_dim: int, head_dim_v: int, causal: bool) -> None:
    case = Case(head_dim, 1, 77, 150, num_heads=2, num_heads_kv=1, head_dim_v=head_dim_v)
    q, k, v = case.qkv(TARGET)
    check_dense(q, k, v, causal=causal)
    check_dense_gradients(q, k, v, causal=causal)


@pytest.mark.parametrize("seqlen_q", [3, 100])
@pytest.mark.parametrize(
    ("head_dim", "head_dim_v"), [(184, 120), (112, 72), (72, 120), (24, 16), (16, 24)]
)
def test_columns_beyond_a_width(head_dim: int, head_dim_v: int, seqlen_q: int) -> None:
    """They are not read, and hold NaN; those of results stay as they are."""
    q, k, v = Case(head_dim, 1, seqlen_q, 130, 2, 1, head_dim_v=head_dim_v).qkv(TARGET)
    used = torch.full((1,), 130, dtype=torch.int32)
    expected = flash_attn_with_kvcache(q, k, v, cache_seqlens=used)
    wider = [torch.nn.functional.pad(x, (8, 8), value=torch.nan) for x in (q, k, v, expected)]
    q, k, v, out = (x[..., 8:-8] for x in wider)
    out.fill_(7)
    found = flash_attn_with_kvcache(q, k, v, cache_seqlens=used, out=out)
    assert found.data_ptr() == out.data_ptr()
    assert torch.equal(out, expected)
    assert wider[3][..., :8].isnan().all()
    assert wider[3][..., -8:].isnan().all()


@pytest.mark.parametrize("lengths", [(3 * 128 + 70, 66 * 64 + 7), (130 * 64 + 5, 3 * 128 + 70)])
def test_lists_that_are_cut(lengths: tuple[int, int]) -> None:
    """Of a row and of a column of blocks that all see."""
    blocks = torch.eye(-(-lengths[0] // 64), -(-lengths[1] // 64), dtype=torch.bool)
    blocks[1] = blocks[:, 1] = True
    pairs = blocks.repeat_interleave(64, 0).repeat_interleave(64, 1)
    mask = BlockMask.from_dense(pairs[: lengths[0], : lengths[1]])
    q = TARGET.tensor(1, lengths[0], 1, 16)
    k, v = TARGET.tensor(1, lengths[1], 1, 16), TARGET.tensor(1, lengths[1], 1, 32)
    check_dense(q, k, v, block_mask=mask)
    check_dense_gradients(q, k, v, block_mask=mask)


@pytest.mark.parametrize(("head_dim", "head_dim_v"), [(192, 128), (8, 32)])
def test_gradients_of_biases(head_dim: int, head_dim_v: int) -> None:
    q, k, v = Case(head_dim, 1, 70, 90, 2, 1, head_dim_v=head_dim_v).qkv(TARGET)
    bias, relative = torch.randn(1, 2, 70, 90), torch.randn(2, 159)
    check_dense_gradients(q, k, v, bias=bias, relative_bias=relative, dropout_p=0.2)


def test_forward_cost_is_the_least_possible() -> None:
    seqlen, heads = 384, 2  # whole tiles
    q, k, v = Case(192, 1, seqlen, seqlen, heads, 1, head_dim_v=128).qkv(TARGET)
    cost = counted(q, k, v)
    assert cost["mma"] * MMA_FLOP == heads * seqlen * seqlen * (192 + 128)
    assert_no_conflicts(cost)
    for name, x in {"q": q, "k": k, "v": v}.items():
        assert cost[f"read.{name}.distinct_sectors"] * SECTOR_BYTES == x.nbytes
    blocks = cost["ctas"] / heads
    assert cost["read.bytes"] == q.nbytes + heads * blocks * (k.nbytes + v.nbytes)
    assert cost["write.out.sectors"] * SECTOR_BYTES == heads * seqlen * 128 * 2


def test_backward_cost_is_the_least_possible() -> None:
    seqlen, heads = 256, 2
    q, k, v = Case(192, 1, seqlen, seqlen, heads, 1, head_dim_v=128).qkv(TARGET)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = flash_attn_func(*leaves)
    module = backends.load(NAME).module
    module.reset_counters()
    torch.autograd.grad(out, leaves, torch.randn_like(out))
    cost = module.counters()
    assert cost["mma"] * MMA_FLOP == heads * seqlen * seqlen * (3 * 192 + 2 * 128)
    assert_no_conflicts(cost)
    assert cost["read.k.sectors"] * SECTOR_BYTES == k.nbytes
    assert cost["read.v.sectors"] * SECTOR_BYTES == v.nbytes
    blocks = seqlen / 64  # of keys
    assert cost["read.q.bytes"] == blocks * q.nbytes
    assert cost["read.grad_out.bytes"] == (blocks + 1) * out.nbytes
    for name, x in {"grad_q": q, "grad_k": k, "grad_v": v}.items():
        assert cost[f"write.{name}.sectors"] * SECTOR_BYTES == x.nbytes


def assert_no_conflicts(cost: dict[str, float]) -> None:
    for unit in ("ldmatrix", "cp_async", "shared_loads", "shared_stores"):
        assert cost[f"{unit}.wavefronts"] == cost[f"{unit}.ideal_wavefronts"], unit


def test_sequences_do_not_depend_on_company() -> None:
    q, k, v = Case(192, 3, 140, 200, 2, 1, head_dim_v=128).qkv(TARGET)
    together = flash_attn_func(q, k, v, causal=True)
    alone = [flash_attn_func(q[i : i + 1], k[i : i + 1], v[i : i + 1], causal=True) for i in (0, 2)]
    assert torch.equal(together[0::2], torch.cat(alone))


def test_deterministic_gradients_are_the_same_in_every_run() -> None:
    q, k, v = Case(192, 1, 150, 200, 2, 1, head_dim_v=128).qkv(TARGET)
    grad_out = TARGET.tensor(1, 150, 2, 128)

    def gradients(seed: int) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        with emulator_options(f"ctas=3,async=random,seed={seed}"):
            out = flash_attn_func(*leaves, causal=True, deterministic=True)
            return torch.autograd.grad(out, leaves, grad_out)

    expected = gradients(1)
    assert all(map(torch.equal, gradients(2), expected))
