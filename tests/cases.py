"""Problems, features and layouts that the tests of forward and backward share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from support import Target, cumulative, lengths
from torch import Tensor

from flash_attn2.reference import Packing


@dataclass(frozen=True)
class Case:
    """A dense problem. `alibi` is "heads" or "batch": the shape of the slopes."""

    head_dim: int = 64
    batch: int = 2
    seqlen_q: int = 113
    seqlen_k: int = 203
    num_heads: int = 4
    num_heads_kv: int = 2
    alibi: str | None = None
    sink: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    head_dim_v: int | None = None  # None: as head_dim

    def qkv(self, target: Target) -> tuple[Tensor, Tensor, Tensor]:
        kv = (self.batch, self.seqlen_k, self.num_heads_kv)
        q = target.tensor(self.batch, self.seqlen_q, self.num_heads, self.head_dim)
        k = target.tensor(*kv, self.head_dim)
        return q, k, target.tensor(*kv, self.head_dim_v or self.head_dim)

    def all_options(self, device: str) -> dict[str, Any]:
        return self.options | per_head_options(
            self.alibi, self.sink, self.batch, self.num_heads, device
        )


def per_head_options(
    alibi: str | None, sink: bool, batch: int, num_heads: int, device: str
) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if alibi is not None:
        shape = (num_heads,) if alibi == "heads" else (batch, num_heads)
        options["alibi_slopes"] = 0.3 * torch.rand(shape, device=device)
    if sink:
        options["sink"] = 2 * torch.randn(num_heads, device=device)
    return options


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
    head_dim_v: int | None = None  # None: as head_dim

    def qkv(self, target: Target) -> tuple[Tensor, Tensor, Tensor]:
        def rows(seqlens: tuple[int, ...], num_heads: int, head_dim: int) -> Tensor:
            x = target.tensor(sum(seqlens) + self.spare_rows, num_heads, head_dim)
            x[sum(seqlens) :] = torch.nan
            return x

        q, k, v = (
            rows(self.seqlens_q, self.num_heads, self.head_dim),
            rows(self.seqlens_k, self.num_heads_kv, self.head_dim),
            rows(self.seqlens_k, self.num_heads_kv, self.head_dim_v or self.head_dim),
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

USED = (70, 60, 0, 0, 11, 96)
PACKED_FEATURES = {
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
