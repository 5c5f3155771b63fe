"""`out=`: results in memory that the caller gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cache_cases import CacheCase
from support import CPU_FLOAT32, ONE_DTYPE, Target, cumulative, lengths, targets
from torch import Tensor

from flash_attn2 import (
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_attn_with_kvcache,
)

CU = (3, 0, 5)


def varlen(target: Target, head_dim: int = 16) -> tuple[list[Tensor], dict[str, Any]]:
    cu = cumulative(*CU, device=target.device)
    tensors = [target.tensor(9, heads, head_dim) for heads in (4, 2, 2)]  # a row of no sequence
    return tensors, {"cu_seqlens_q": cu, "cu_seqlens_k": cu, "causal": True}


def assert_written(call: Callable[..., Any], expected: Any, out: Tensor) -> None:
    result = call(out=out)
    assert result is out
    assert torch.equal(result, expected)
    result, lse = call(out=out.fill_(torch.nan), return_lse=True)
    assert result is out
    assert torch.equal(result, expected)
    assert torch.equal(lse, call(return_lse=True)[1])


@targets(ONE_DTYPE)
@pytest.mark.parametrize("head_dim", [16, 20])
def test_varlen(target: Target, head_dim: int) -> None:
    (q, k, v), options = varlen(target, head_dim)
    if target.device == "cuda":
        q, k, v = q[:8], k[:8], v[:8]

    def call(**more: Any) -> Any:
        return flash_attn_varlen_func(q, k, v, **options, **more)

    expected = call()
    wide = torch.empty(q.shape[0], 4, 2 * head_dim, dtype=q.dtype, device=q.device)
    for out in (torch.empty_like(q), wide[..., ::2], wide[..., head_dim:]):
        assert_written(call, expected, out)


def test_packed() -> None:
    (q, k, v), options = varlen(CPU_FLOAT32)
    kv, qkv = torch.stack([k, v], 1), torch.stack([k, k, v], 1)
    expected = flash_attn_varlen_kvpacked_func(q, kv, **options)
    out = torch.empty_like(q)
    assert flash_attn_varlen_kvpacked_func(q, kv, **options, out=out) is out
    assert torch.equal(out, expected)
    cu, out = options["cu_seqlens_q"], torch.empty_like(k)
    assert flash_attn_varlen_qkvpacked_func(qkv, cu, out=out) is out
    assert torch.equal(out, flash_attn_varlen_qkvpacked_func(qkv, cu))
    out, _, probs = flash_attn_varlen_func(
        q, k, v, **options, dropout_p=0.5, return_attn_probs=True, out=torch.empty_like(q)
    )
    assert probs.numel() > 0


CASES = {
    "dense": CacheCase(new="none"),
    "append": CacheCase(page_size=16, new="neox"),
    "packed": CacheCase(page_size=16, new="append", packed=True, leftpad=True),
}


@targets(ONE_DTYPE)
@pytest.mark.parametrize("name", CASES)
def test_cache(target: Target, name: str) -> None:
    arguments = CASES[name].arguments(target)

    def call(**more: Any) -> Any:
        caches = {x: arguments[x].clone() for x in ("k_cache", "v_cache")}
        return flash_attn_with_kvcache(**arguments | caches, **more)

    assert_written(call, call(), torch.empty_like(arguments["q"]))


def test_paged_varlen() -> None:
    q, pages = torch.randn(8, 4, 16), torch.randn(4, 3, 2, 16)
    options = {"block_table": lengths(0, 1, 2, 3).view(2, 2), "causal": True}
    cu = cumulative(4, 4)

    def call(**more: Any) -> Any:
        return flash_attn_varlen_func(q, pages, pages, cu, cu, **options, **more)

    assert_written(call, call(), torch.empty_like(q))


def test_memory_that_is_read_too() -> None:
    (q, k, v), options = varlen(CPU_FLOAT32)
    expected = flash_attn_varlen_func(q, k, v, **options)
    both = torch.stack([q, q])
    same = flash_attn_varlen_func(both[0], k, v, **options, out=both[0])
    assert same.data_ptr() == both.data_ptr()
    assert torch.equal(both, torch.stack([expected, q]))
    arguments = CacheCase(new="neox").arguments(CPU_FLOAT32)
    expected = flash_attn_with_kvcache(
        **arguments | {x: arguments[x].clone() for x in ("k_cache", "v_cache")}
    )
    assert torch.equal(flash_attn_with_kvcache(**arguments, out=arguments["q"]), expected)


def test_versions_and_modes() -> None:
    (q, k, v), options = varlen(CPU_FLOAT32)
    expected, out = flash_attn_varlen_func(q, k, v, **options), torch.empty_like(q)
    before = out._version
    flash_attn_varlen_func(q, k, v, **options, out=out)
    assert out._version > before
    with torch.inference_mode():
        out = torch.empty_like(q)
        assert torch.equal(flash_attn_varlen_func(q, k, v, **options, out=out), expected)
    torch._dynamo.reset()
    compiled = torch.compile(flash_attn_varlen_func, fullgraph=True, backend="aot_eager")
    out = torch.zeros_like(q)
    compiled(q, k, v, **options, out=out)
    assert torch.equal(out, expected)
    with torch.autocast("cpu"):
        out = torch.empty_like(q, dtype=torch.bfloat16)
        low = flash_attn_varlen_func(q, k, v, **options, out=out)
        assert torch.equal(low, flash_attn_varlen_func(q, k, v, **options))


def test_gradient() -> None:
    (q, k, v), options = varlen(CPU_FLOAT32)
    q.requires_grad_()
    with pytest.raises(NotImplementedError, match="out must be None where a gradient is asked"):
        flash_attn_varlen_func(q, k, v, **options, out=torch.empty_like(q))
    with torch.no_grad():
        out = torch.empty_like(q)
        assert flash_attn_varlen_func(q, k, v, **options, out=out) is out
    cache = torch.randn(1, 4, 2, 16)
    with pytest.raises(NotImplementedError, match="out must be None where a gradient is asked"):
        flash_attn_with_kvcache(q[None, :4], cache, cache, out=torch.empty(1, 4, 4, 16))


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        ("there", TypeError, "out must be a torch.Tensor, got str"),
        (torch.empty(9, 4, 8), ValueError, r"out must have shape \(9, 4, 16\), got \(9, 4, 8\)"),
        (torch.empty(9, 4, 16).half(), TypeError, "out must be torch.float32, got torch.float16"),
        (torch.empty(9, 4, 16, device="meta"), ValueError, "device of q, cpu, got meta"),
        (torch.empty(1, 4, 16).expand(9, 4, 16), ValueError, "out must not overlap itself"),
    ],
)
def test_errors(out: Any, error: type[Exception], message: str) -> None:
    (q, k, v), options = varlen(CPU_FLOAT32)
    with pytest.raises(error, match=message):
        flash_attn_varlen_func(q, k, v, **options, out=out)
