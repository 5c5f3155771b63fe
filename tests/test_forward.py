"""Dense attention against the float64 reference: every feature, dtype, head dim and layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from support import ONE_DTYPE, Case, Target, check_dense, targets
from torch import Tensor

from flash_attn2 import flash_attn_func
from flash_attn2.reference import attention_reference

EVERYTHING = {"causal": True, "window_size": (70, -1), "softcap": 5.0, "dropout_p": 0.2}
FEATURES = {
    "plain": Case(),
    "tile_aligned": Case(seqlen_q=128, seqlen_k=256),
    "causal": Case(options={"causal": True}),
    "causal_square": Case(seqlen_q=256, seqlen_k=256, options={"causal": True}),
    "causal_rows_without_keys": Case(seqlen_q=203, seqlen_k=113, options={"causal": True}),
    "window": Case(options={"window_size": (40, 25)}),
    "window_left": Case(options={"window_size": (33, -1)}),
    "window_right": Case(options={"window_size": (-1, 33)}),
    "window_causal": Case(seqlen_q=300, seqlen_k=300, options={"window_size": (64, 0)}),
    "window_diagonal_only": Case(options={"window_size": (0, 0)}),
    "window_rows_without_keys": Case(seqlen_q=260, seqlen_k=61, options={"window_size": (9, 9)}),
    "window_beyond_the_keys": Case(options={"window_size": (10**6, 2**40)}),
    "causal_overrides_right": Case(options={"causal": True, "window_size": (50, 50)}),
    "softcap": Case(options={"softcap": 1.5, "softmax_scale": 1.0}),
    "alibi": Case(alibi="heads"),
    "alibi_per_sequence": Case(alibi="batch", options={"causal": True}),
    "alibi_more_queries": Case(seqlen_q=203, seqlen_k=113, alibi="heads"),
    "sink": Case(sink=True),
    "sink_rows_without_keys": Case(seqlen_q=203, seqlen_k=113, sink=True, options={"causal": True}),
    "dropout": Case(options={"dropout_p": 0.3}),
    "dropout_causal": Case(options={"dropout_p": 0.17, "causal": True}),
    "mha": Case(num_heads=3, num_heads_kv=3),
    "mqa": Case(num_heads=5, num_heads_kv=1, options={"causal": True}),
    "one_query": Case(seqlen_q=1, num_heads=8, options={"causal": True}),
    "one_key": Case(seqlen_k=1),
    "few_of_both": Case(seqlen_q=3, seqlen_k=5, options={"causal": True}),
    "scale_zero": Case(options={"softmax_scale": 0.0}),
    "scale_large": Case(options={"softmax_scale": 4.0}),
    "everything": Case(alibi="batch", sink=True, options=EVERYTHING),
    "everything_long": Case(
        batch=1, seqlen_q=400, seqlen_k=530, alibi="batch", sink=True, options=EVERYTHING
    ),
}
BUCKETS = (32, 64, 96, 128, 192, 256)
HEAD_DIMS = (*BUCKETS, 1, 8, 13, 40, 72, 80, 100, 160, 224, 248)


@targets()
@pytest.mark.parametrize("case", FEATURES.values(), ids=FEATURES.keys())
def test_features(case: Case, target: Target) -> None:
    check_dense(*case.qkv(target), **case.all_options(target.device))


@targets()
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("causal", [False, True])
def test_head_dims(head_dim: int, causal: bool, target: Target) -> None:
    case = Case(head_dim, batch=1, seqlen_q=77, seqlen_k=150, num_heads=2, num_heads_kv=1)
    check_dense(*case.qkv(target), causal=causal)


@targets(ONE_DTYPE)
@pytest.mark.parametrize("head_dim", BUCKETS)
def test_everything_at_every_bucket(head_dim: int, target: Target) -> None:
    case = Case(head_dim, alibi="batch", sink=True, options=EVERYTHING)
    check_dense(*case.qkv(target), **case.all_options(target.device))


@targets(ONE_DTYPE)
@pytest.mark.parametrize("seqlen_q", [1, 15, 16, 17, 63, 64, 65, 127, 128, 129])
@pytest.mark.parametrize("seqlen_k", [1, 63, 64, 65, 128, 129])
def test_edges_of_tiles(seqlen_q: int, seqlen_k: int, target: Target) -> None:
    q, k, v = Case(32, 1, seqlen_q, seqlen_k, num_heads=1, num_heads_kv=1).qkv(target)
    check_dense(q, k, v)
    check_dense(q, k, v, causal=True)
    check_dense(q, k, v, window_size=(20, 3))


def heads_outside(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def rows_outside(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def slice_of_larger(x: Tensor) -> Tensor:
    return F.pad(x, (8, 16, 1, 2, 3, 4), value=torch.nan)[:, 3:-4, 1:-2, 8:-16]


def misaligned_rows(x: Tensor) -> Tensor:
    return F.pad(x, (3, 2), value=torch.nan)[..., 3:-2]


def last_stride_two(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1)[..., ::2]


def same_for_the_batch(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape)


def same_for_all_heads(x: Tensor) -> Tensor:
    return x[:, :, :1].expand(x.shape)


LAYOUTS = (
    heads_outside,
    rows_outside,
    slice_of_larger,
    misaligned_rows,
    last_stride_two,
    same_for_the_batch,
    same_for_all_heads,
)


@targets()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: Callable[[Tensor], Tensor], target: Target) -> None:
    q, k, v = map(layout, Case(40).qkv(target))
    assert not q.is_contiguous()
    check_dense(q, k, v, causal=True)


@targets(ONE_DTYPE)
@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7), (2, 5, 0), (2, 0, 0)], ids=str)
def test_nothing_to_do(shape: tuple[int, int, int], target: Target) -> None:
    batch, seqlen_q, seqlen_k = shape
    q, k, v = Case(batch=batch, seqlen_q=seqlen_q, seqlen_k=seqlen_k).qkv(target)
    out, lse, probs = flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
    assert torch.equal(out, torch.zeros_like(q))
    assert torch.equal(lse, torch.full_like(lse, -torch.inf))
    assert lse.shape == (batch, 4, seqlen_q)
    assert probs.shape == (batch, 4, seqlen_q, seqlen_k)
    sink = torch.randn(4, device=target.device)
    _, lse, _ = flash_attn_func(q, k, v, sink=sink, return_attn_probs=True)
    assert torch.equal(lse, sink[:, None].expand(batch, 4, seqlen_q))


@targets(ONE_DTYPE)
def test_scores_of_any_size(target: Target) -> None:
    q, k, v = Case().qkv(target)
    check_dense(30 * q, 30 * k, v)
    check_dense(q, k, v, softcap=1e-3)
    check_dense(q, k, v, sink=torch.tensor([80.0, -80.0, 0.0, 3e4], device=target.device))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [40, 64, 128, 256])
def test_float32_is_as_exact_as_torch(head_dim: int, causal: bool) -> None:
    q, k, v = Case(head_dim, 1, 512, 512, 4, 4).qkv(Target("cpu", torch.float32))
    exact, *_ = attention_reference(q.double(), k.double(), v.double(), causal=causal)
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    torch_out = F.scaled_dot_product_attention(*heads_first, is_causal=causal).transpose(1, 2)
    error = (flash_attn_func(q, k, v, causal=causal) - exact).abs().max()
    assert error <= 4 * (torch_out - exact).abs().max()
