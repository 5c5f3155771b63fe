"""flash_attn_varlen_func with a block table, against the same keys in one piece."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cache_cases import NONSENSE
from support import (
    ONE_DTYPE,
    Target,
    assert_lse,
    assert_within_rule,
    cumulative,
    lengths,
    targets,
)
from torch import Tensor

from flash_attn2 import flash_attn_varlen_func
from flash_attn2.reference import Packing, varlen_attention_reference

SEQLENS_Q = (5, 70, 1, 0, 9)
SEQLENS_K = (70, 113, 9, 12, 0)
OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window_size": (30, 4), "softcap": 3.0},
}


def in_pages(x: Tensor, page_size: int, table: Tensor) -> Tensor:
    """Packed rows in the pages of a table, which gets its entries; NaN everywhere else."""
    pages = torch.full((40, page_size, *x.shape[1:]), torch.nan, dtype=x.dtype, device=x.device)
    for rows, entries in zip(x.split(SEQLENS_K), table, strict=True):
        for page, part in zip(entries, rows.split(page_size), strict=False):
            pages[page, : len(part)] = part
    return pages


def block_table(page_size: int, device: str) -> Tensor:
    columns = -(-max(SEQLENS_K) // page_size) + 1
    table = torch.tensor(NONSENSE).repeat(40)[: 5 * columns].view(5, columns)
    free = iter(torch.randperm(40).tolist())
    for entries, seqlen in zip(table, SEQLENS_K, strict=True):
        for column in range(-(-seqlen // page_size)):
            entries[column] = next(free)
    return table.int().to(device)


@targets()
@pytest.mark.parametrize("page_size", [7, 32])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_pages(options: dict[str, Any], page_size: int, target: Target) -> None:
    q = target.tensor(sum(SEQLENS_Q), 4, 64)
    k, v = (target.tensor(sum(SEQLENS_K), 2, 64) for _ in "kv")
    packing = Packing(
        cumulative(*SEQLENS_Q, device=target.device),
        cumulative(*SEQLENS_K, device=target.device),
        None,
        70,
        113,
    )
    table = block_table(page_size, target.device)
    out, lse = flash_attn_varlen_func(
        q,
        in_pages(k, page_size, table),
        in_pages(v, page_size, table),
        *packing[:2],
        packing.max_seqlen_q,
        packing.max_seqlen_k,
        return_lse=True,
        block_table=table,
        **options,
    )
    exact, low = (
        varlen_attention_reference(*(x.to(dtype) for x in (q, k, v)), packing, **options)
        for dtype in (torch.float64, q.dtype)
    )
    assert_within_rule("out", out, exact[0], low[0])
    assert_lse(lse, exact[1], options.get("softcap", 0.0))


@targets(ONE_DTYPE)
def test_seqused_k(target: Target) -> None:
    """Fewer keys than cu_seqlens_k says."""
    q = target.tensor(6, 4, 64)
    pages = target.tensor(9, 16, 2, 64)
    table = lengths(4, 0, 7, 2, 8, 1, device=target.device).view(2, 3)
    cu_q, cu_k = (cumulative(*x, device=target.device) for x in ((2, 4), (40, 33)))
    used = lengths(40, 17, device=target.device)
    by_used = flash_attn_varlen_func(
        q, pages, pages, cu_q, cu_k, 4, 40, block_table=table, seqused_k=used
    )
    by_lengths = flash_attn_varlen_func(
        q, pages, pages, cu_q, cumulative(40, 17, device=target.device), 4, 40, block_table=table
    )
    assert torch.equal(by_used, by_lengths)
