"""Dense attention against the float64 reference: every feature, dtype, head dim and layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from cases import BUCKETS, EVERYTHING, FEATURES, HEAD_DIMS, LAYOUTS, Case
from support import ONE_DTYPE, Target, check_dense, targets
from torch import Tensor

from flash_attn2 import attention_probs, flash_attn_func
from flash_attn2.reference import attention_reference


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
    assert probs.shape == (0,)
    assert attention_probs(q, k, causal=True).shape == (batch, 4, seqlen_q, seqlen_k)
    sink = torch.randn(4, device=target.device)
    _, lse = flash_attn_func(q, k, v, sink=sink, return_lse=True)
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
