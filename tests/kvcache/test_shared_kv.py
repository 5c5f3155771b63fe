"""Keys whose leading columns are the values: read once, and as a cache written once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cache_cases import bits
from cases import EVERYTHING, Case
from support import (
    CPU_FLOAT32,
    TARGETS,
    TORCH,
    Target,
    assert_lse,
    assert_within_rule,
    check_gradients,
    cumulative,
    lengths,
    targets,
)
from torch import Tensor

from flash_attn2 import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache
from flash_attn2.inference import PagedKVCache
from flash_attn2.masks import causal, documents
from flash_attn2.reference import attention_reference, kvcache_attention_reference

CPU = [target for target in TARGETS if target.backend == "cpu"]
BOTH = [Target("cpu", torch.float32), Target("cpu", torch.bfloat16)]


def latents(case: Case, target: Target) -> tuple[Tensor, Tensor, Tensor]:
    q, k, _ = case.qkv(target)
    return q, k, k[..., : case.head_dim_v]


def same_as_copies(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> None:
    """Bits of results and of gradients, by which autograd adds up those of both uses."""
    assert v.data_ptr() == k.data_ptr()
    out, lse = flash_attn_func(q, k, v, return_lse=True, **options)
    expected = flash_attn_func(q, k, v.clone(), return_lse=True, **options)
    assert torch.equal(out, expected[0])
    assert torch.equal(lse, expected[1])
    options["deterministic"] = True
    q, k = q.detach().requires_grad_(), k.detach().requires_grad_()
    values = k.detach()[..., : v.shape[-1]].clone().requires_grad_()
    grad_out = torch.randn_like(out)
    grads = torch.autograd.grad(
        flash_attn_func(q, k, k[..., : v.shape[-1]], **options), (q, k), grad_out
    )
    apart = torch.autograd.grad(flash_attn_func(q, k, values, **options), (q, k, values), grad_out)
    assert torch.equal(grads[0], apart[0])
    together = apart[1].clone()
    together[..., : v.shape[-1]] += apart[2]
    assert torch.equal(grads[1], together)


@targets(CPU)
@pytest.mark.parametrize(("head_dim", "head_dim_v"), [(40, 24), (40, 33), (40, 40), (576, 512)])
@pytest.mark.parametrize("seqlen_q", [1, 3, 70, 130])
def test_bits_of_copies(seqlen_q: int, head_dim: int, head_dim_v: int, target: Target) -> None:
    case = Case(head_dim, 1, seqlen_q, 210, 2, 1, head_dim_v=head_dim_v)
    same_as_copies(*latents(case, target), causal=True)


@targets(BOTH)
def test_bits_of_copies_with_options(target: Target) -> None:
    case = Case(40, 1, 300, 300, 4, 2, head_dim_v=24)
    q, k, v = latents(case, target)
    mask = (causal() & documents(torch.arange(300) // 130)).build(300, 300)
    same_as_copies(q, k, v, block_mask=mask)
    same_as_copies(q, k, v, bias=torch.randn(4, 300, 300, dtype=target.dtype))
    same_as_copies(30 * q, k, v, softcap=40.0)
    k = 30 * k
    same_as_copies(30 * q, k, k[..., :24])


@targets(CPU)
def test_gradients(target: Target) -> None:
    """Of keys as both, by the reference."""
    case = Case(24, 1, 50, 80, 4, 2, head_dim_v=16, sink=True, options=EVERYTHING)

    def of_keys(function: Any) -> Any:
        def attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
            return function(q, k, k[..., : v.shape[-1]], **options)

        return attend

    q, k, v = latents(case, target)
    inputs = {"q": q, "k": k, "v": v} | case.all_options(target.device)
    check_gradients(
        of_keys(flash_attn_func), of_keys(attention_reference), inputs, ("q", "k", "sink")
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("heads", [4, 32])
def test_cache(heads: int, given: bool, paged: bool, dtype: torch.dtype) -> None:
    q = torch.randn(2, 3, heads, 48, dtype=dtype)
    k_cache = torch.randn(6, 16, 1, 48, dtype=dtype) if paged else None
    if k_cache is None:
        k_cache = torch.randn(2, 48, 1, 48, dtype=dtype)
    v_cache = k_cache[..., :32]
    k = torch.randn(2, 3, 1, 48, dtype=dtype)
    options: dict[str, Any] = {"cache_seqlens": lengths(30, 7), "causal": True}
    if paged:
        options["block_table"] = torch.randperm(6, dtype=torch.int32).view(2, 3)
    exact, low = (
        kvcache_attention_reference(q, k_cache, v_cache, k, None, **options, dtype=x)
        for x in (torch.float64, None)
    )
    v = k[..., :32] if given else None
    out, lse = flash_attn_with_kvcache(
        q, k_cache, v_cache, k, v, softmax_scale=48**-0.5, return_lse=True, **options
    )
    assert torch.equal(bits(k_cache), bits(exact[2]))
    assert_within_rule("out", out, exact[0], low[0])
    assert_lse(lse, exact[1])


def test_pages() -> None:
    cache = PagedKVCache(2, 8, 4, 1, 48, head_dim_v=32, shared_kv=True)
    assert "head_dim=48" in repr(cache)
    assert "head_dim_v=32, shared_kv=True" in repr(cache)
    assert cache.usage().bytes_total == 2 * 8 * 4 * 48 * 4
    for k_cache, v_cache in cache.layers:
        assert v_cache.data_ptr() == k_cache.data_ptr()
        assert v_cache.shape == (8, 4, 1, 32)
        k_cache.fill_(torch.nan)
    parent = cache.allocate()
    k = torch.randn(9, 1, 48)

    def write(cache: PagedKVCache, sequence: int, k: Tensor, layers: int = 2) -> Tensor:
        step = cache.append([sequence], k.shape[0])
        q = torch.ones(k.shape[0], 4, 48)
        for caches in cache.layers[:layers]:
            out: Any = flash_attn_with_kvcache(q, *caches, k, causal=True, **step._asdict())
        return out  # type: ignore[no-any-return]

    write(cache, parent, k)
    twin, child = copy.deepcopy(cache), cache.fork(parent)
    more = torch.randn(1, 1, 48)
    keys = torch.cat([k, more])[None]
    expected = flash_attn_func(torch.ones(1, 1, 4, 48), keys, keys[..., :32])[0]
    for each, sequence in ((cache, child), (cache, parent), (twin, parent)):
        torch.testing.assert_close(write(each, sequence, more), expected)
    write(cache, child, more, layers=1)
    with pytest.raises(RuntimeError, match="1 of 2 layers have been written"):
        cache.append([child], 1)


def test_pages_of_equal_widths() -> None:
    cache = PagedKVCache(1, 8, 4, 1, 48, shared_kv=True)
    assert cache.layers[0][1].shape == (8, 4, 1, 48)
    with pytest.raises(ValueError, match="head_dim_v must be at most head_dim, 48, with shared_kv"):
        PagedKVCache(1, 8, 4, 1, 48, head_dim_v=49, shared_kv=True)
    with pytest.raises(TypeError, match="shared_kv must be a bool"):
        PagedKVCache(1, 8, 4, 1, 48, shared_kv="yes")  # type: ignore[arg-type]


def arguments(**other: Any) -> dict[str, Any]:
    k_cache = torch.zeros(2, 20, 1, 48)
    given = {"q": torch.randn(2, 3, 4, 48), "k_cache": k_cache, "v_cache": k_cache[..., :32]}
    return given | {"k": torch.randn(2, 3, 1, 48), "cache_seqlens": 5} | other


K = torch.randn(2, 3, 1, 48)
BAD = {
    "v must be given with k, got v=None: only where v_cache": {
        "v_cache": torch.zeros(2, 20, 1, 32)
    },
    "v must be None or k": {"v": torch.randn(2, 3, 1, 32)},
    "v must be None or k.*in the same memory": {"k": K, "v": K[..., 16:]},
    "rotary_cos must be None where v_cache is": {
        "rotary_cos": torch.rand(40, 4),
        "rotary_sin": torch.rand(40, 4),
    },
    "k must be given with v": {"k": None, "v": torch.randn(2, 3, 1, 32)},
}


@pytest.mark.parametrize("message", BAD)
def test_refused(message: str) -> None:
    given = arguments(**BAD[message])
    with pytest.raises(ValueError, match=message):
        flash_attn_with_kvcache(**given)
    assert not given["k_cache"].any()


@pytest.mark.parametrize("part", [slice(8, 40), slice(0, 48, 2)])
def test_other_overlaps_stay_refused(part: slice) -> None:
    given = arguments()
    given["v_cache"] = given["k_cache"][..., part]
    given["v"] = torch.randn(2, 3, 1, given["v_cache"].shape[-1])
    with pytest.raises(ValueError, match=r"must not be the same memory|must have a last stride"):
        flash_attn_with_kvcache(**given)
    assert not given["k_cache"].any()


@pytest.mark.parametrize("given", [False, True])
def test_the_stride_of_a_single_head_means_nothing(given: bool) -> None:
    pages, k = torch.zeros(6, 16, 48), torch.randn(2, 3, 1, 48)
    q, table = torch.randn(2, 3, 4, 48), torch.arange(6, dtype=torch.int32).view(2, 3)
    held = {"cache_seqlens": lengths(0, 7), "block_table": table}
    k_cache, v_cache = pages[:, :, None], pages[..., :32][:, :, None]
    assert k_cache.stride() != v_cache.stride()
    v = k.squeeze(2)[..., :32].unsqueeze(2) if given else None
    out = flash_attn_with_kvcache(q, k_cache, v_cache, k, v, **held)
    apart = torch.zeros(6, 16, 1, 48)
    values = torch.zeros(6, 16, 1, 32)
    expected = flash_attn_with_kvcache(q, apart, values, k, k[..., :32].clone(), **held)
    assert torch.equal(k_cache, apart)
    assert torch.equal(out, expected)  # type: ignore[arg-type]


def test_caches_without_rows_hold_nothing() -> None:
    """Whose addresses are the same, all of which are null."""
    q, k, v = torch.randn(0, 1, 4, 48), torch.randn(0, 1, 1, 48), torch.randn(0, 1, 1, 48)
    tables = {"rotary_cos": torch.ones(20, 24), "rotary_sin": torch.zeros(20, 24)}
    k_cache, v_cache = torch.zeros(0, 20, 1, 48), torch.zeros(0, 20, 1, 48)
    out = flash_attn_with_kvcache(q, k_cache, v_cache, k, v, **tables, cache_seqlens=lengths())
    assert out.shape == (0, 1, 4, 48)  # type: ignore[union-attr]


def test_read_only() -> None:
    q, k_cache = torch.randn(2, 3, 4, 48), torch.randn(2, 20, 1, 48)
    held = lengths(9, 20)
    out = flash_attn_with_kvcache(q, k_cache, k_cache[..., :32], cache_seqlens=held)
    expected = flash_attn_with_kvcache(q, k_cache, k_cache[..., :32].clone(), cache_seqlens=held)
    assert torch.equal(out, expected)  # type: ignore[arg-type]


def test_autocast() -> None:
    """Where k is converted, so are its values."""
    k_cache = torch.zeros(2, 20, 1, 48, dtype=torch.bfloat16)
    given = arguments(k_cache=k_cache, v_cache=k_cache[..., :32])
    with torch.autocast("cpu", torch.bfloat16):
        flash_attn_with_kvcache(**given)
        expected = k_cache.clone()
        flash_attn_with_kvcache(**given, v=given["k"][..., :32])
    assert torch.equal(k_cache, expected)
    assert k_cache[:, 5:8].any()


@pytest.mark.skipif(
    TORCH < (2, 6), reason="functionalization of torch 2.4 and 2.5 takes views for memory apart"
)
def test_compile() -> None:
    given = arguments()
    expected = flash_attn_with_kvcache(**given)
    written = given["k_cache"].clone()
    given["k_cache"].zero_()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(q: Tensor, k_cache: Tensor, k: Tensor) -> Any:
        return flash_attn_with_kvcache(q, k_cache, k_cache[..., :32], k, cache_seqlens=5)

    out = step(given["q"], given["k_cache"], given["k"])
    assert torch.equal(out, expected)  # type: ignore[arg-type]
    assert torch.equal(given["k_cache"], written)


@targets(BOTH)
def test_varlen(target: Target) -> None:
    q, k = target.tensor(50, 4, 40), target.tensor(90, 2, 40)
    bounds = cumulative(20, 30), cumulative(33, 57), 30, 57
    out = flash_attn_varlen_func(q, k, k[..., :24], *bounds, causal=True)
    expected = flash_attn_varlen_func(q, k, k[..., :24].clone(), *bounds, causal=True)
    assert torch.equal(out, expected)  # type: ignore[arg-type]


def test_one_width_for_all() -> None:
    """k and v that are one tensor."""
    q, k, _ = Case(16, 1, 20, 30, 2, 1).qkv(CPU_FLOAT32)
    same_as_copies(q, k, k)
