"""Packed sequences against the float64 reference, and against the same sequences on their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from support import (
    ONE_DTYPE,
    Target,
    check_varlen,
    cumulative,
    lengths,
    per_head_options,
    run_varlen,
    targets,
)
from torch import Tensor

from flash_attn2 import flash_attn_func
from flash_attn2._launch import Packing


@dataclass(frozen=True)
class Packed:
    """A packed problem. Rows past the sequences, and keys past seqused_k, hold NaN."""

    seqlens_q: tuple[int, ...] = (5, 113, 1, 64, 0, 130)
    seqlens_k: tuple[int, ...] = (70, 113, 9, 0, 12, 97)
    seqused_k: tuple[int, ...] | None = None
    spare_rows: int = 0
    slack: int = 0  # of max_seqlen over the longest sequence
    head_dim: int = 64
    num_heads: int = 4
    num_heads_kv: int = 2
    alibi: str | None = None
    sink: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def qkv(self, target: Target) -> tuple[Tensor, Tensor, Tensor]:
        def rows(seqlens: tuple[int, ...], num_heads: int) -> Tensor:
            x = target.tensor(sum(seqlens) + self.spare_rows, num_heads, self.head_dim)
            x[sum(seqlens) :] = torch.nan
            return x

        q, k, v = (
            rows(self.seqlens_q, self.num_heads),
            rows(self.seqlens_k, self.num_heads_kv),
            rows(self.seqlens_k, self.num_heads_kv),
        )
        begin = 0
        for seqlen, used in zip(self.seqlens_k, self.seqused_k or self.seqlens_k, strict=True):
            k[begin + used : begin + seqlen] = torch.nan
            v[begin + used : begin + seqlen] = torch.nan
            begin += seqlen
        return q, k, v

    def packing(self, device: str) -> Packing:
        return Packing(
            cumulative(*self.seqlens_q, device=device),
            cumulative(*self.seqlens_k, device=device),
            None if self.seqused_k is None else lengths(*self.seqused_k, device=device),
            max(self.seqlens_q) + self.slack,
            max(self.seqlens_k) + self.slack,
        )

    def all_options(self, device: str) -> dict[str, Any]:
        return self.options | per_head_options(
            self.alibi, self.sink, len(self.seqlens_q), self.num_heads, device
        )


USED = (70, 60, 0, 0, 11, 96)
CASES = {
    "plain": Packed(),
    "causal": Packed(options={"causal": True}),
    "window": Packed(options={"window_size": (30, 7)}),
    "one_sequence": Packed((150,), (211,), options={"causal": True}),
    "all_empty": Packed((0, 0), (0, 0)),
    "no_keys": Packed((3, 4), (0, 0)),
    "many_short": Packed(tuple(range(20)), tuple(range(20)), options={"causal": True}),
    "loose_bounds": Packed(slack=100, options={"causal": True}),
    "spare_rows": Packed(spare_rows=37, options={"causal": True}),
    "seqused_k": Packed(seqused_k=USED),
    "seqused_k_causal": Packed(seqused_k=USED, options={"causal": True}),
    "alibi": Packed(alibi="heads", options={"causal": True}),
    "alibi_per_sequence": Packed(alibi="batch"),
    "sink": Packed(sink=True, options={"causal": True}),
    "softcap": Packed(options={"softcap": 2.0, "softmax_scale": 1.0}),
    "dropout": Packed(options={"dropout_p": 0.25}),
    "mqa": Packed(num_heads=6, num_heads_kv=1, options={"causal": True}),
    "everything": Packed(
        seqused_k=USED,
        spare_rows=5,
        slack=3,
        head_dim=96,
        alibi="batch",
        sink=True,
        options={"causal": True, "window_size": (80, 0), "softcap": 5.0, "dropout_p": 0.2},
    ),
}


@targets()
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
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
