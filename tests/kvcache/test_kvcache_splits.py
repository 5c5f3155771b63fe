"""Splitting the keys of a sequence: the same result, reproducible, sequence by sequence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cache_cases import CAPACITY, CacheCase, check_kvcache
from support import ONE_DTYPE, Target, cumulative, num_threads, targets
from torch import Tensor

from flash_attn2 import flash_attn_with_kvcache
from flash_attn2._impl import backends

SPLITS = (1, 2, 5, 16, 128)
DECODE = CacheCase(heads=(8, 2), seqlen_q=1, page_size=16, num_splits=3, modifier="sink")
FEW_ROWS = CacheCase(heads=(4, 2), seqlen_q=5, num_splits=3, mask="window", leftpad=True)


def part_of_cache(arguments: dict[str, Any], b: int) -> dict[str, Any]:
    """The arguments of sequence `b` on its own, with the same cache."""
    table = {"cache_batch_idx": torch.tensor([b], dtype=torch.int32, device=arguments["q"].device)}
    if "block_table" in arguments:
        table = {"block_table": arguments["block_table"][b : b + 1]}
    rows = {
        name: arguments[name][b : b + 1]
        for name in ("q", "k", "v", "cache_seqlens", "cache_leftpad")
        if name in arguments
    }
    return arguments | rows | table


@targets(ONE_DTYPE)
@pytest.mark.parametrize("case", [DECODE, FEW_ROWS], ids=["decode", "few_rows"])
@pytest.mark.parametrize("num_splits", SPLITS)
def test_any_number_of_splits(num_splits: int, case: CacheCase, target: Target) -> None:
    check_kvcache(**case.arguments(target) | {"num_splits": num_splits})


def test_the_number_reaches_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(backends.Backend, "run", lambda *args: seen.append(args[2]))
    flash_attn_with_kvcache(**DECODE.arguments(Target("cpu", torch.float32)))
    assert seen[0]["num_splits"] == DECODE.num_splits


@targets(ONE_DTYPE)
def test_queries_that_see_no_key_of_a_split(target: Target) -> None:
    """A window that lies in one split, and sequences shorter than the number of splits."""
    case = CacheCase(heads=(4, 2), seqlen_q=1, new="none", num_splits=7)
    arguments = case.arguments(target) | {"window_size": (20, 0)}
    check_kvcache(**arguments)


@targets()
@pytest.mark.parametrize("case", [DECODE, FEW_ROWS], ids=["decode", "few_rows"])
def test_bitwise_reproducible_and_independent_of_the_batch(case: CacheCase, target: Target) -> None:
    arguments = case.arguments(target)
    together = flash_attn_with_kvcache(**arguments, return_softmax_lse=True)
    again = flash_attn_with_kvcache(**arguments, return_softmax_lse=True)
    assert all(map(torch.equal, together, again))
    for b in range(3):
        alone = flash_attn_with_kvcache(**part_of_cache(arguments, b), return_softmax_lse=True)
        for x, y in zip(together, alone, strict=True):
            assert torch.equal(x[b], y[0])


@targets([Target("cpu", torch.bfloat16), Target("cpu", torch.float32)])
@pytest.mark.parametrize("case", [DECODE, FEW_ROWS], ids=["decode", "few_rows"])
@pytest.mark.parametrize("num_splits", [1, 3])
def test_independent_of_the_number_of_threads(
    num_splits: int, case: CacheCase, target: Target
) -> None:
    arguments = case.arguments(target) | {"num_splits": num_splits}
    results: list[Tensor] = []
    for threads in (1, 2, 5):
        with num_threads(threads):
            results.append(flash_attn_with_kvcache(**arguments))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@targets(ONE_DTYPE)
def test_packed_and_dense_queries_agree(target: Target) -> None:
    arguments = CacheCase(seqlen_q=4, num_splits=2, new="neox").arguments(target)
    dense = flash_attn_with_kvcache(**arguments)
    flat = {name: arguments[name].flatten(0, 1) for name in ("q", "k", "v")}
    cu_seqlens = cumulative(4, 4, 4, device=target.device)
    packed = flash_attn_with_kvcache(**arguments | flat, cu_seqlens_q=cu_seqlens)
    assert torch.equal(dense.flatten(0, 1), packed)


@targets(ONE_DTYPE)
def test_pages_and_rows_agree(target: Target) -> None:
    """A cache in one piece, cut into pages that lie in order."""
    arguments = CacheCase(num_splits=3).arguments(target)
    whole = flash_attn_with_kvcache(**arguments)
    pages = {name: arguments[name].view(-1, 32, 2, 64) for name in ("k_cache", "v_cache")}
    table = torch.arange(5 * CAPACITY // 32, device=target.device).view(5, -1)[:3].int()
    paged = flash_attn_with_kvcache(**arguments | pages, block_table=table)
    torch.testing.assert_close(whole, paged, rtol=0.02, atol=0.01)


@targets(ONE_DTYPE)
def test_mixed_prefill_and_decode_in_one_call(target: Target) -> None:
    """Each sequence as on its own, for a given number of splits."""
    rows = (40, 1, 1)
    case = CacheCase(page_size=16, packed=True, num_splits=2)
    arguments = case.arguments(target)
    for name, heads in (("q", 6), ("k", 2), ("v", 2)):
        arguments[name] = target.tensor(sum(rows), heads, 64)
    arguments["cu_seqlens_q"] = cumulative(*rows, device=target.device)
    arguments["block_table"] = torch.arange(60, device=target.device).view(3, 20).int()
    for name in ("k_cache", "v_cache"):
        arguments[name] = target.tensor(60, 16, 2, 64)
    out, _ = check_kvcache(**arguments)
    held = arguments["cache_seqlens"]
    for b, (begin, count) in enumerate(zip((0, 40, 41), rows, strict=True)):
        of_sequence = {
            name: arguments[name][begin : begin + count][None] for name in ("q", "k", "v")
        }
        of_sequence |= {
            "block_table": arguments["block_table"][b : b + 1],
            "cache_seqlens": held[b : b + 1],
            "cu_seqlens_q": None,
        }
        alone = flash_attn_with_kvcache(**arguments | of_sequence)
        torch.testing.assert_close(alone[0], out[begin : begin + count], rtol=0.02, atol=0.01)
