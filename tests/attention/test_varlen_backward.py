"""Gradients of packed attention against the reference, and of sequences on their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import PACKED_FEATURES, USED, Packed
from support import ONE_DTYPE, TARGETS, Target, check_varlen_gradients, run_varlen, targets
from torch import Tensor

from flash_attn2 import (
    flash_attn_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
)
from flash_attn2.reference import Packing

FEATURE_TARGETS = [t for t in TARGETS if t.backend != "sm80-emulated" or t in ONE_DTYPE]


@targets(FEATURE_TARGETS)
@pytest.mark.parametrize("case", PACKED_FEATURES.values(), ids=PACKED_FEATURES.keys())
def test_features(case: Packed, target: Target) -> None:
    options = case.all_options(target.device)
    check_varlen_gradients(*case.qkv(target), case.packing(target.device), **options)


@targets(ONE_DTYPE)
@pytest.mark.parametrize("head_dim", [8, 72, 128, 256])
def test_head_dims(head_dim: int, target: Target) -> None:
    case = Packed((40, 0, 71), (50, 3, 66), head_dim=head_dim, options={"causal": True})
    check_varlen_gradients(*case.qkv(target), case.packing(target.device), **case.options)


def gradients(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, grad_out: Tensor, **options: Any
) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = run_varlen(*leaves, packing, deterministic=True, **options)
    return torch.autograd.grad(out, leaves, grad_out)


@targets(ONE_DTYPE)
def test_rows_of_no_sequence_have_gradient_zero(target: Target) -> None:
    case = Packed(seqused_k=USED, spare_rows=37)
    q, k, v = case.qkv(target)
    end = sum(case.seqlens_q)
    grad_out = torch.randn_like(q)
    grad_out[end:] = torch.nan
    grads = gradients(q, k, v, case.packing(target.device), grad_out)
    unused = [torch.arange(len(q)) >= end, k[:, 0, 0].isnan().cpu(), v[:, 0, 0].isnan().cpu()]
    for grad, rows in zip(grads, unused, strict=True):
        assert not grad[rows].any()
        assert not grad.isnan().any()


@targets(ONE_DTYPE)
def test_sequence_does_not_depend_on_the_batch(target: Target) -> None:
    options = {"causal": True, "softcap": 3.0}
    case = Packed()
    packing = case.packing(target.device)
    q, k, v = case.qkv(target)
    grad_out = torch.randn_like(q)
    together = gradients(q, k, v, packing, grad_out, **options)
    begin_q, end_q = packing.cu_seqlens_q[1:3].tolist()
    begin_k, end_k = packing.cu_seqlens_k[1:3].tolist()
    rows_q, rows_k = slice(begin_q, end_q), slice(begin_k, end_k)

    def only(x: Tensor, rows: slice) -> Tensor:
        others_nan = torch.full_like(x, torch.nan)
        others_nan[rows] = x[rows]
        return others_nan

    rows = (rows_q, rows_k, rows_k)
    inputs = map(only, (q, k, v), rows)
    beside_nan = gradients(*inputs, packing, only(grad_out, rows_q), **options)
    leaves = [x[None, own].requires_grad_() for x, own in zip((q, k, v), rows, strict=True)]
    out = flash_attn_func(*leaves, deterministic=True, **options)
    alone = torch.autograd.grad(out, leaves, grad_out[None, rows_q])
    for own, whole, other, single in zip(rows, together, beside_nan, alone, strict=True):
        assert torch.equal(whole[own], other[own])
        assert torch.equal(whole[own], single[0])


@targets(ONE_DTYPE)
@pytest.mark.parametrize("head_dim", [64, 20])
def test_packed_forms_have_packed_gradients(head_dim: int, target: Target) -> None:
    case = Packed((40, 0, 33), (40, 0, 33), spare_rows=4, head_dim=head_dim, num_heads_kv=4)
    packing = case.packing(target.device)
    cu_seqlens, max_seqlen = packing.cu_seqlens_q, packing.max_seqlen_q
    q, k, v = case.qkv(target)
    grad_out = torch.randn_like(q)
    grad_q, grad_k, grad_v = gradients(q, k, v, packing, grad_out)
    kv = torch.stack([k, v], 1).requires_grad_()
    qkv = torch.stack([q, k, v], 1).requires_grad_()
    q = q.requires_grad_()
    flash_attn_varlen_kvpacked_func(
        q, kv, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, deterministic=True
    ).backward(grad_out)
    flash_attn_varlen_qkvpacked_func(qkv, cu_seqlens, max_seqlen, deterministic=True).backward(
        grad_out
    )
    assert torch.equal(q.grad, grad_q)
    assert torch.equal(kv.grad, torch.stack([grad_k, grad_v], 1))
    assert torch.equal(qkv.grad, torch.stack([grad_q, grad_k, grad_v], 1))


@targets(ONE_DTYPE)
def test_strided_lengths(target: Target) -> None:
    case = Packed(seqused_k=USED)
    q, k, v = case.qkv(target)
    grad_out = torch.randn_like(q)
    packing = case.packing(target.device)
    every_second = [None if x is None else torch.stack([x, x + 1000], 1)[:, 0] for x in packing[:3]]
    strided = Packing(*every_second, *packing[3:])
    expected = gradients(q, k, v, packing, grad_out)
    assert all(map(torch.equal, gradients(q, k, v, strided, grad_out), expected))
