"""Rows that need what their neighbours do not: kernels ask for several of them at once whether one
has outgrown its base, has seen no key yet, or has scores whose rounding matters.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import ONE_DTYPE, Target, assert_lse, assert_within_rule, targets
from torch import Tensor

from flash_attn2 import flash_attn_func, flash_attn_with_kvcache
from flash_attn2.masks import BlockMask
from flash_attn2.reference import attention_reference

NEIGHBOURS = 8  # rows of a fragment's half: a warp has two halves of two fragments
PLACES = 4  # of such rows, in turn
# Queries and keys: whole tiles but for one path, of which the last is the first that is visited.
LENGTHS = {
    "dense": (128, 192),
    "edge": (128, 190),
    "full": (128, 192),
    "partial": (128, 192),
    "bias": (128, 192),
}
LENGTHS |= {"few": (16, 768), "many": (100, 1200)}
paths = pytest.mark.parametrize("path", LENGTHS)
head_dims = pytest.mark.parametrize("head_dim", [32, 64])
LARGE = (
    180 / 128
)  # times a power of two, one of the scores whose product with log2(e) is rounded most


def places(seqlen_q: int) -> Tensor:
    """(place, seqlen_q): the rows at each of them."""
    place = torch.arange(seqlen_q) // NEIGHBOURS % PLACES
    return place == torch.arange(min(PLACES, seqlen_q // NEIGHBOURS))[:, None]


def drawn(path: str, head_dim: int, target: Target) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows at each place, in a batch of them, and q, k and v, of which only v is not zero."""
    seqlen_q, seqlen_k = LENGTHS[path]
    rows = places(seqlen_q).to(target.device)
    v = target.tensor(len(rows), seqlen_k, 1, head_dim)
    return rows, v.new_zeros(len(rows), seqlen_q, 1, head_dim), torch.zeros_like(v), v


def options_of(path: str, visible: Tensor) -> dict[str, Any]:
    """By which a path hides what is not `visible` (batch, seqlen_q, seqlen_k)."""
    if path in ("full", "partial"):
        return {"block_mask": BlockMask.from_dense(visible[:, None])}
    if path == "bias":
        bias = torch.zeros(visible.shape, device=visible.device)
        return {"bias": bias.masked_fill(~visible, -torch.inf)[:, None]}
    return {}


def check(path: str, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> None:
    """With scores that are products of q and k."""
    options = {"softmax_scale": 1.0} | options_of(path, visible)
    if path in ("few", "many"):
        out, lse = flash_attn_with_kvcache(
            q, k, v, num_splits=2, return_softmax_lse=True, **options
        )
    else:
        out, lse = flash_attn_func(q, k, v, return_lse=True, **options)
    exact, low = (
        attention_reference(*(x.to(dtype) for x in (q, k, v)), **options)
        for dtype in (torch.float64, q.dtype)
    )
    assert_within_rule("out", out, exact[0], low[0])
    assert_lse(lse, exact[1])


def all_pairs(path: str, rows: Tensor, seqlen_k: int) -> Tensor:
    """Or all but one key of every block."""
    visible = torch.ones(*rows.shape, seqlen_k, dtype=torch.bool, device=rows.device)
    if path == "partial":
        visible[..., 5::64] = False
    return visible


@head_dims
@paths
@targets(ONE_DTYPE)
def test_rows_that_outgrow_their_bases(path: str, head_dim: int, target: Target) -> None:
    """By more than a float32 holds, at the keys that are visited last."""
    rows, q, k, v = drawn(path, head_dim, target)
    q[..., 0] = 16 * rows[..., None]
    k[:, :64, :, 0] = 16
    check(path, q, k, v, all_pairs(path, rows, k.shape[1]))


@head_dims
@pytest.mark.parametrize("exponent", [24, 40])
@paths
@targets(ONE_DTYPE)
def test_rows_whose_scores_are_large(
    path: str, exponent: int, head_dim: int, target: Target
) -> None:
    """Where a bit of a rounded product makes a factor of two, or more than any exponent."""
    rows, q, k, v = drawn(path, head_dim, target)
    q[..., 0] = 2.0 ** (exponent // 2) * rows[..., None]
    k[..., 0] = LARGE * 2.0 ** (exponent // 2)
    check(path, q, k, v, all_pairs(path, rows, k.shape[1]))


@head_dims
@pytest.mark.parametrize("path", ["partial", "bias"])
@targets(ONE_DTYPE)
def test_rows_that_see_no_key_yet(path: str, head_dim: int, target: Target) -> None:
    """And then some whose scores are the least there are, below the base that nothing has."""
    rows, q, k, v = drawn(path, head_dim, target)
    q[..., 0] = rows[..., None]
    k[:, :64, :, 0] = -3e38
    visible = all_pairs(path, rows, k.shape[1])
    visible[..., 64:] &= ~rows[..., None]
    check(path, q, k, v, visible)


@head_dims
@pytest.mark.parametrize("path", ["partial", "bias"])
@targets(ONE_DTYPE)
def test_rows_that_see_one_key(path: str, head_dim: int, target: Target) -> None:
    """Whose sum is 1, of which the logarithm is 0."""
    rows, q, k, v = drawn(path, head_dim, target)
    q += 1
    k[..., 0] = torch.arange(k.shape[1])[:, None] % 7
    visible = all_pairs(path, rows, k.shape[1])
    visible &= ~rows[..., None]
    visible[..., 70] = True
    check(path, q, k, v, visible)
