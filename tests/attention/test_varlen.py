"""Packed sequences against the float64 reference, and against the same sequences on their own."""

from __future__ import annotations

import pytest
import torch
from cases import PACKED_FEATURES, USED, Packed
from support import (
    ONE_DTYPE,
    Target,
    check_varlen,
    run_varlen,
    targets,
)

from flash_attn2 import flash_attn_func
from flash_attn2.reference import Packing


@targets()
@pytest.mark.parametrize("case", PACKED_FEATURES.values(), ids=PACKED_FEATURES.keys())
def test_features(case: Packed, target: Target) -> None:
    options = case.all_options(target.device)
    check_varlen(*case.qkv(target), case.packing(target.device), **options)


@targets(ONE_DTYPE)
@pytest.mark.parametrize("head_dim", [8, 32, 72, 128, 192, 256])
def test_head_dims(head_dim: int, target: Target) -> None:
    case = Packed((40, 0, 71), (50, 3, 66), head_dim=head_dim, options={"causal": True})
    check_varlen(*case.qkv(target), case.packing(target.device), **case.options)


@targets()
def test_sequence_does_not_depend_on_the_batch(target: Target) -> None:
    case = Packed(options={"causal": True, "softcap": 3.0})
    packing = case.packing(target.device)
    q, k, v = case.qkv(target)
    together = run_varlen(q, k, v, packing, **case.options)
    others_nan = [x.clone() for x in (q, k, v)]
    begin_q, end_q = packing.cu_seqlens_q[1:3].tolist()
    begin_k, end_k = packing.cu_seqlens_k[1:3].tolist()
    for x, begin, end in zip(
        others_nan, (begin_q, begin_k, begin_k), (end_q, end_k, end_k), strict=True
    ):
        x[:begin] = torch.nan
        x[end:] = torch.nan
    beside_nan = run_varlen(*others_nan, packing, **case.options)
    alone = flash_attn_func(
        q[None, begin_q:end_q], k[None, begin_k:end_k], v[None, begin_k:end_k], **case.options
    )
    assert torch.equal(together[begin_q:end_q], beside_nan[begin_q:end_q])
    assert torch.equal(together[begin_q:end_q], alone[0])


@targets(ONE_DTYPE)
def test_strided_lengths(target: Target) -> None:
    case = Packed(seqused_k=USED)
    q, k, v = case.qkv(target)
    packing = case.packing(target.device)
    every_second = [None if x is None else torch.stack([x, x + 1000], 1)[:, 0] for x in packing[:3]]
    strided = Packing(*every_second, *packing[3:])
    assert torch.equal(run_varlen(q, k, v, packing), run_varlen(q, k, v, strided))
