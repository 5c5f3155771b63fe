"""The reference of the cache call against the same written row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cache_cases import CacheCase, bits
from support import Target
from torch import Tensor

from flash_attn2.reference import attention_reference, kvcache_attention_reference, rotated

DOUBLE = Target("cpu", torch.float64)
CASES = {
    "dense": CacheCase(head_dim=16, new="neox", leftpad=True),
    "all_queries_at_one_position": CacheCase(head_dim=16, new="interleaved", mask="full"),
    "rows_of_the_cache": CacheCase(head_dim=16, new="append", batch_idx=True, mask="window"),
    "paged": CacheCase(head_dim=16, page_size=16, new="partial", modifier="alibi", more_new=2),
    "packed": CacheCase(head_dim=16, page_size=48, new="neox", packed=True, more_new=2),
    "read_only": CacheCase(head_dim=16, page_size=1, new="none", packed=True, leftpad=True),
}


def turned(row: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """One row (num_heads, head_dim), by multiplication of complex numbers."""
    dim = 2 * cos.shape[0]
    pairs = row[:, :dim].unflatten(1, (-1, 2) if interleaved else (2, -1))
    pairs = (pairs if interleaved else pairs.mT).contiguous()
    result = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    return torch.cat([(result if interleaved else result.mT).flatten(1), row[:, dim:]], 1)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [2, 6, 16])
def test_rotation(rotary_dim: int, interleaved: bool) -> None:
    x = torch.randn(2, 3, 4, 16, dtype=torch.float64)
    angles = torch.rand(9, rotary_dim // 2, dtype=torch.float64)
    cos, sin = angles.cos(), angles.sin()
    positions = torch.tensor([[4, 0, 8], [1, 1, 7]])
    actual = rotated(x, cos, sin, positions, interleaved)
    for b in range(2):
        for i, at in enumerate(positions[b]):
            expected = turned(x[b, i], cos[at], sin[at], interleaved)
            torch.testing.assert_close(actual[b, i], expected)


def test_rotation_rounds_products_and_sums() -> None:
    x, cos, sin = torch.randn(1, 1, 1, 2), *torch.rand(2, 1, 1)
    x_0, x_1, c, s = (float(value) for value in (*x.flatten(), cos, sin))
    product = [torch.tensor(a * b) for a in (x_0, x_1) for b in (c, s)]
    expected = torch.stack([product[0] - product[3], product[1] + product[2]])
    actual = rotated(x, cos, sin, torch.zeros(1, 1, dtype=torch.int64), True)
    assert torch.equal(actual.flatten(), expected)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_row_by_row(case: CacheCase) -> None:
    arguments = case.arguments(DOUBLE)
    del arguments["num_splits"]
    out, _, *caches = kvcache_attention_reference(**arguments)
    expected = {name: arguments[name].clone() for name in ("k_cache", "v_cache")}
    table = torch.arange(3)[:, None]
    if case.batch_idx:
        table = arguments["cache_batch_idx"][:, None]
    table = arguments.get("block_table", table)

    def place(b: int, position: int) -> tuple[int, int]:
        page_size = arguments["k_cache"].shape[1]
        return int(table[b, position // page_size]), position % page_size

    def turn(row: Tensor, position: int) -> Tensor:
        if "rotary_cos" not in arguments:
            return row
        tables = arguments["rotary_cos"][position], arguments["rotary_sin"][position]
        return turned(row, *tables, arguments["rotary_interleaved"])

    def rows_of(tensor: Tensor, counts: tuple[int, ...]) -> Any:
        return tensor.split(counts) if case.packed else tensor

    q = rows_of(arguments["q"], case.rows_q)
    options = {name: arguments[name] for name in ("causal", "window_size") if name in arguments}
    for b, held in enumerate(case.held):
        for i in range(case.rows_new[b]):
            new_k, new_v = (rows_of(arguments[name], case.rows_new)[b][i] for name in "kv")
            expected["k_cache"][place(b, held + i)] = turn(new_k, held + i)
            expected["v_cache"][place(b, held + i)] = new_v
        if case.rows_q[b] == 0:
            continue
        advance = 0 if case.mask == "full" else 1
        turned_q = torch.stack([turn(row, held + i * advance) for i, row in enumerate(q[b])])
        seen = [place(b, j) for j in range(case.padding[b], case.ends[b])]
        k, v = (torch.stack([cache[at] for at in seen]) for cache in expected.values())
        if case.modifier == "alibi":
            options["alibi_slopes"] = arguments["alibi_slopes"][b]
        alone, *_ = attention_reference(turned_q[None], k[None], v[None], **options)
        torch.testing.assert_close(rows_of(out, case.rows_q)[b], alone[0])
    for cache, rows in zip(caches, expected.values(), strict=True):
        torch.testing.assert_close(cache, rows, equal_nan=True)
    assert torch.equal(bits(caches[1]), bits(expected["v_cache"]))
