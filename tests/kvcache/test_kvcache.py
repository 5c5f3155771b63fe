"""flash_attn_with_kvcache against the float64 reference, the contents of the cache bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cache_cases import AXES, CAPACITY, CacheCase, all_pairs, check_kvcache, possible
from cases import LAYOUTS
from support import (
    ONE_DTYPE,
    TARGETS,
    Target,
    assert_within_rule,
    cumulative,
    lengths,
    targets,
)

from flash_attn2 import flash_attn_with_kvcache
from flash_attn2.reference import attention_reference, rotated


def combinations() -> list[Any]:
    """Every pair of features, dtypes included, on every backend."""
    chosen = []
    for backend in dict.fromkeys(target.backend for target in TARGETS):
        of_backend = [target for target in TARGETS if target.backend == backend]
        for case in all_pairs({"target": of_backend} | AXES, possible):
            target = case.pop("target")
            name = "-".join(f"{k}={v}" for k, v in case.items() if v not in (None, False, 0))
            chosen.append(pytest.param(target, CacheCase(**case), id=f"{target}-{name}"))
    return chosen


@pytest.mark.parametrize(("target", "case"), combinations(), indirect=["target"])
def test_combinations(target: Target, case: CacheCase) -> None:
    check_kvcache(**case.arguments(target))


@targets(ONE_DTYPE)
@pytest.mark.parametrize("head_dim", [8, 32, 72, 96, 160, 192, 248, 256])
def test_head_dims(head_dim: int, target: Target) -> None:
    case = CacheCase(head_dim, (4, 2), 2, page_size=16, new="neox", num_splits=2)
    check_kvcache(**case.arguments(target))


@targets([target for target in TARGETS if target.dtype is not torch.float32])
@pytest.mark.parametrize("new", ["neox", "interleaved", "partial"])
def test_float32_tables(new: str, target: Target) -> None:
    """Beside any queries: what a position turns by is not rounded to their dtype."""
    case = CacheCase(new=new, page_size=16, float32_tables=True)
    arguments = case.arguments(target)
    assert arguments["rotary_cos"].dtype is torch.float32
    check_kvcache(**arguments)
    # The rows that were written are those of the formula, bit for bit.
    end = int(arguments["cache_seqlens"][0])
    first, row = arguments["block_table"][0, end // 16], arguments["k_cache"]
    tables = arguments["rotary_cos"], arguments["rotary_sin"]
    at = torch.tensor([[end]], device=target.device)
    expected = rotated(arguments["k"][:1, :1], *tables, at, arguments["rotary_interleaved"])
    assert torch.equal(row[first, end % 16], expected[0, 0])


@targets(ONE_DTYPE)
@pytest.mark.parametrize("page_size", [None, 16])
def test_without_lengths_the_whole_cache_counts(page_size: int | None, target: Target) -> None:
    case = CacheCase(page_size=page_size, new="none")
    arguments = case.arguments(target) | {"cache_seqlens": None}
    for name in ("k_cache", "v_cache"):
        arguments[name] = target.tensor(*arguments[name].shape)
    if page_size is not None:
        arguments["block_table"] = torch.arange(9, device=target.device).view(3, 3).int()
    check_kvcache(**arguments)


@targets(ONE_DTYPE)
def test_shared_pages(target: Target) -> None:
    """A prefix that three sequences share, and pages of their own behind it."""
    cache = [target.tensor(8, 16, 2, 64) for _ in "kv"]
    table = lengths(5, 1, 7, 6, 5, 1, 3, -1, 5, 1, 0, -1, device=target.device).view(3, 4)
    check_kvcache(
        q=target.tensor(3, 2, 4, 64),
        k_cache=cache[0],
        v_cache=cache[1],
        k=target.tensor(3, 2, 2, 64),
        v=target.tensor(3, 2, 2, 64),
        cache_seqlens=lengths(47, 32, 40, device=target.device),
        block_table=table,
        causal=True,
    )


@targets(ONE_DTYPE)
@pytest.mark.parametrize("held", [(0, 0, 0), (0, 9, 0)])
@pytest.mark.parametrize("new", ["none", "append"])
def test_sequences_without_keys(new: str, held: tuple[int, ...], target: Target) -> None:
    arguments = CacheCase(new=new, page_size=16).arguments(target)
    arguments["cache_seqlens"] = lengths(*held, device=target.device)
    for name in ("k_cache", "v_cache"):
        arguments[name] = target.tensor(*arguments[name].shape)
    out, lse = check_kvcache(**arguments)
    if new == "none":
        assert (out[0] == 0).all()
        assert (lse[0] == -torch.inf).all()


@targets(ONE_DTYPE)
def test_padding_may_cover_everything(target: Target) -> None:
    arguments = CacheCase(new="neox").arguments(target)
    arguments["cache_leftpad"] = lengths(5, 133, 248, device=target.device)
    check_kvcache(**arguments)
    arguments["cache_leftpad"] = lengths(6, 133, 247, device=target.device)
    out, _ = check_kvcache(**arguments)
    assert (out[:2] == 0).all()


@targets(ONE_DTYPE)
@pytest.mark.parametrize("case", [CacheCase(), CacheCase(page_size=16, packed=True)])
def test_nothing_to_do(case: CacheCase, target: Target) -> None:
    arguments = case.arguments(target)
    empty = {"k": arguments["k"][:0], "v": arguments["v"][:0], "q": arguments["q"][:0]}
    if case.packed:
        empty["cu_seqlens_q"] = lengths(0, 0, 0, 0, device=target.device)
    else:
        empty["cache_seqlens"] = arguments["cache_seqlens"][:0]
    out, lse = flash_attn_with_kvcache(**arguments | empty, return_softmax_lse=True)
    assert out.shape == empty["q"].shape
    assert lse.numel() == 0


@targets(ONE_DTYPE)
def test_append_without_queries(target: Target) -> None:
    arguments = CacheCase(new="neox").arguments(target)
    arguments["q"] = arguments["q"][:, :0]
    out = flash_attn_with_kvcache(**arguments)
    assert out.shape == (3, 0, 6, 64)
    for b, end in enumerate((6, 133, 248)):
        assert not arguments["k_cache"][b, :end].isnan().any()
        assert torch.equal(arguments["v_cache"][b, end - 3 : end], arguments["v"][b])


@targets(ONE_DTYPE)
def test_cache_without_room(target: Target) -> None:
    empty = target.tensor(2, 0, 2, 64)
    out, lse = flash_attn_with_kvcache(
        target.tensor(2, 3, 4, 64), empty, empty, return_softmax_lse=True
    )
    assert (out == 0).all()
    assert (lse == -torch.inf).all()


@targets(ONE_DTYPE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_new_tensors_of_any_layout(layout: Any, target: Target) -> None:
    arguments = CacheCase(new="neox", page_size=16).arguments(target)
    for name in ("q", "k", "v"):
        arguments[name] = layout(arguments[name])
    for name in ("cache_seqlens", "block_table"):
        arguments[name] = arguments[name].repeat_interleave(2, -1)[..., ::2]
    for name in ("rotary_cos", "rotary_sin"):
        arguments[name] = arguments[name].T.contiguous().T
    check_kvcache(**arguments)


@targets(ONE_DTYPE)
def test_int_and_tensor_lengths_agree(target: Target) -> None:
    for packed in (False, True):
        case = CacheCase(int_lengths=True, packed=packed, num_splits=2, new="interleaved")
        arguments = case.arguments(target)
        by_int, _ = check_kvcache(**arguments)
        by_tensor, _ = check_kvcache(
            **arguments | {"cache_seqlens": lengths(77, 77, 77, device=target.device)}
        )
        assert torch.equal(by_int, by_tensor)


@targets()
@pytest.mark.parametrize("chunks", [[1] * 12, [7, 1, 1, 3]])
def test_steps_equal_one_causal_pass(chunks: list[int], target: Target) -> None:
    """Prefill, whole or in chunks, and decoding: each token attends to those before it."""
    total, rotary_dim = sum(chunks), 24
    q = target.tensor(2, total, 4, 64)
    k, v = (target.tensor(2, total, 2, 64) for _ in "kv")
    angles = 9 * torch.rand(total, rotary_dim // 2)
    cos, sin = angles.cos().to(q), angles.sin().to(q)
    positions = torch.arange(total, device=q.device).expand(2, total)
    turned_q, turned_k = (rotated(x, cos, sin, positions, False) for x in (q, k))
    exact, low = (
        attention_reference(*(x.to(dtype) for x in (turned_q, turned_k, v)), causal=True)[0]
        for dtype in (torch.float64, q.dtype)
    )
    caches = [torch.full((8, 4, 2, 64), torch.nan, dtype=q.dtype, device=q.device) for _ in "kv"]
    table = lengths(6, 2, 0, 5, 7, 1, device=target.device).view(2, 3)
    steps = []
    for end, rows in zip(cumulative(*chunks)[1:].tolist(), chunks, strict=True):
        chunk = slice(end - rows, end)
        held = lengths(end - rows, end - rows, device=target.device)
        steps.append(
            flash_attn_with_kvcache(
                q[:, chunk], *caches, k[:, chunk], v[:, chunk], cos, sin, held, None, None, table,
                causal=True, rotary_interleaved=False,
            )
        )  # fmt: skip
    assert_within_rule("out", torch.cat(steps, 1), exact, low)


@targets(ONE_DTYPE)
def test_results(target: Target) -> None:
    arguments = CacheCase(layout="interleaved").arguments(target)
    out, lse = flash_attn_with_kvcache(**arguments, return_softmax_lse=True)
    assert torch.equal(flash_attn_with_kvcache(**arguments), out)
    assert out.is_contiguous()
    assert out.dtype == arguments["q"].dtype
    assert lse.dtype == torch.float32
    assert lse.shape == (3, 6, 3)


@targets(ONE_DTYPE)
def test_positions_past_the_queries_of_a_sequence(target: Target) -> None:
    """Rows of packed queries that belong to no sequence."""
    arguments = CacheCase(packed=True, new="neox").arguments(target)
    for name in ("q", "k", "v"):
        arguments[name] = torch.cat([arguments[name], torch.full_like(arguments[name], torch.nan)])
    check_kvcache(**arguments, max_seqlen_q=CAPACITY)
